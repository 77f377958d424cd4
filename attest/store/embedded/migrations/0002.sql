-- Attempts can be signed, and have the host that opened them. SQLite changes
-- no constraint in place, so the table is made again.
CREATE TABLE attempts_new (
	id            TEXT PRIMARY KEY,
	session       TEXT NOT NULL,
	host          TEXT NOT NULL,
	profile       TEXT NOT NULL,
	nonce         TEXT NOT NULL UNIQUE,
	invocation_id TEXT NOT NULL UNIQUE,
	builder_id    TEXT NOT NULL,
	job_id        INTEGER NOT NULL,
	job           TEXT NOT NULL,
	opened        INTEGER NOT NULL,
	state         TEXT NOT NULL CHECK (state IN ('open', 'signed', 'closed', 'refused', 'superseded')),
	reason        TEXT NOT NULL DEFAULT '',
	project       TEXT NOT NULL DEFAULT '',
	ended         INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO attempts_new
	(rowid, id, session, host, profile, nonce, invocation_id, builder_id, job_id, job, opened, state, reason, project, ended)
	SELECT rowid, id, session, '', profile, nonce, invocation_id, builder_id, job_id, job, opened, state, reason, project, ended
	FROM attempts;
DROP TABLE attempts;
ALTER TABLE attempts_new RENAME TO attempts;
CREATE INDEX attempts_job ON attempts (job_id);
CREATE INDEX attempts_project ON attempts (project, ended);
CREATE INDEX attempts_undecided ON attempts (state, opened) WHERE state IN ('open', 'signed');
CREATE UNIQUE INDEX attempts_one_open ON attempts (job_id) WHERE state IN ('open', 'signed');
-- A job is attested once, whoever decides: only what is attested has a project.
CREATE UNIQUE INDEX attempts_one_attested ON attempts (job_id) WHERE state = 'signed' OR state = 'closed' AND project <> '';
-- What was signed and is not closed yet: whole bundles, a few at a time.
CREATE TABLE drafts (
	attempt  TEXT NOT NULL REFERENCES attempts (id),
	part     INTEGER NOT NULL,
	bundle   BLOB NOT NULL,
	subjects TEXT NOT NULL,
	PRIMARY KEY (attempt, part)
) STRICT;
CREATE TABLE hosts (
	name     TEXT PRIMARY KEY,
	key      TEXT NOT NULL UNIQUE,
	projects TEXT NOT NULL,
	profiles TEXT NOT NULL,
	enrolled INTEGER NOT NULL,
	expires  INTEGER NOT NULL,
	revoked  INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE invitations (
	token    TEXT PRIMARY KEY,
	host     TEXT NOT NULL,
	projects TEXT NOT NULL,
	profiles TEXT NOT NULL,
	created  INTEGER NOT NULL,
	expires  INTEGER NOT NULL
) STRICT;
