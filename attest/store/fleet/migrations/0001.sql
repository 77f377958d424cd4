CREATE TABLE attempts (
	id            text COLLATE "C" PRIMARY KEY,
	number        bigint GENERATED ALWAYS AS IDENTITY,
	session       text NOT NULL,
	host          text NOT NULL,
	profile       text NOT NULL,
	nonce         text NOT NULL UNIQUE,
	invocation_id text NOT NULL UNIQUE,
	builder_id    text NOT NULL,
	job_id        bigint NOT NULL,
	job           text NOT NULL,
	opened        timestamptz NOT NULL,
	state         text NOT NULL CHECK (state IN ('open', 'signed', 'closed', 'refused', 'superseded')),
	reason        text NOT NULL DEFAULT '',
	project       text NOT NULL DEFAULT '',
	ended         timestamptz,
	record_size   bigint NOT NULL DEFAULT 0,
	CHECK ((ended IS NULL) = (state IN ('open', 'signed'))),
	CHECK (state <> 'signed' OR reason = ''),
	CHECK (state <> 'open' OR project = '')
) WITH (fillfactor = 80); -- each append changes record_size in place
CREATE INDEX attempts_job ON attempts (job_id);
CREATE INDEX attempts_project ON attempts (project, ended);
CREATE INDEX attempts_undecided ON attempts (state, opened) WHERE state IN ('open', 'signed');
CREATE UNIQUE INDEX attempts_one_open ON attempts (job_id) WHERE state IN ('open', 'signed');
-- A job is attested once, whoever decides: only what is attested has a project.
CREATE UNIQUE INDEX attempts_one_attested ON attempts (job_id) WHERE state = 'signed' OR state = 'closed' AND project <> '';
-- One row an append, by the offset of its first byte.
CREATE TABLE record_lines (
	attempt text COLLATE "C" NOT NULL REFERENCES attempts (id),
	at      bigint NOT NULL,
	lines   bytea NOT NULL,
	PRIMARY KEY (attempt, at)
);
-- What was signed and is not closed yet: whole bundles, a few at a time.
CREATE TABLE drafts (
	attempt  text COLLATE "C" NOT NULL REFERENCES attempts (id),
	part     integer NOT NULL,
	bundle   bytea NOT NULL,
	subjects text NOT NULL,
	PRIMARY KEY (attempt, part)
);
CREATE TABLE bundles (
	attempt text COLLATE "C" NOT NULL REFERENCES attempts (id),
	part    integer NOT NULL,
	sha256  text NOT NULL UNIQUE,
	PRIMARY KEY (attempt, part)
);
-- Names are bytes: their order is the same under every collation.
CREATE TABLE subjects (
	sha256  text NOT NULL,
	attempt text COLLATE "C" NOT NULL,
	part    integer NOT NULL,
	name    bytea NOT NULL,
	PRIMARY KEY (sha256, attempt, part, name),
	FOREIGN KEY (attempt, part) REFERENCES bundles (attempt, part)
);
CREATE INDEX subjects_bundle ON subjects (attempt, part, name);
-- What may be in the bucket without a decision: noted before it is put there,
-- struck out by the decision.
CREATE TABLE uploads (
	sha256  text PRIMARY KEY,
	started timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX uploads_started ON uploads (started);
CREATE TABLE hosts (
	name     text COLLATE "C" PRIMARY KEY,
	key      text NOT NULL UNIQUE,
	projects text NOT NULL,
	profiles text NOT NULL,
	enrolled timestamptz NOT NULL,
	expires  timestamptz NOT NULL,
	revoked  timestamptz
);
CREATE TABLE invitations (
	token    text PRIMARY KEY,
	host     text NOT NULL,
	projects text NOT NULL,
	profiles text NOT NULL,
	created  timestamptz NOT NULL,
	expires  timestamptz NOT NULL
);
-- Where the schema was made. A dump that is loaded elsewhere is a copy.
CREATE TABLE home (
	cluster text NOT NULL,
	name    text NOT NULL
);
INSERT INTO home SELECT system_identifier::text, (SELECT oid::text FROM pg_database WHERE datname = current_database()) FROM pg_control_system();
-- What all replicas must have the same: the first one's holds.
CREATE TABLE agreed (
	what  text PRIMARY KEY,
	value text NOT NULL
);
