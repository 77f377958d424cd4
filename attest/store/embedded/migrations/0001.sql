CREATE TABLE attempts (
	id            TEXT PRIMARY KEY,
	session       TEXT NOT NULL,
	profile       TEXT NOT NULL,
	nonce         TEXT NOT NULL UNIQUE,
	invocation_id TEXT NOT NULL UNIQUE,
	builder_id    TEXT NOT NULL,
	job_id        INTEGER NOT NULL,
	job           TEXT NOT NULL,
	opened        INTEGER NOT NULL,
	state         TEXT NOT NULL CHECK (state IN ('open', 'closed', 'refused', 'superseded')),
	reason        TEXT NOT NULL DEFAULT '',
	project       TEXT NOT NULL DEFAULT '',
	ended         INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX attempts_job ON attempts (job_id);
CREATE INDEX attempts_project ON attempts (project, ended);
CREATE UNIQUE INDEX attempts_one_open ON attempts (job_id) WHERE state = 'open';
CREATE TABLE bundles (
	attempt TEXT NOT NULL REFERENCES attempts (id),
	part    INTEGER NOT NULL,
	sha256  TEXT NOT NULL UNIQUE,
	PRIMARY KEY (attempt, part)
) STRICT;
CREATE TABLE subjects (
	sha256  TEXT NOT NULL,
	attempt TEXT NOT NULL,
	part    INTEGER NOT NULL,
	name    TEXT NOT NULL,
	PRIMARY KEY (sha256, attempt, part, name),
	FOREIGN KEY (attempt, part) REFERENCES bundles (attempt, part)
) STRICT, WITHOUT ROWID;
CREATE INDEX subjects_bundle ON subjects (attempt, part, name);
