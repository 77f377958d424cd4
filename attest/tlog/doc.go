// Package tlog enters signatures in a transparency log and brings back the proof that they are there.
//
// # What is entered
//
// The draft of a bundle, signed and timestamped, goes into [Log.Enter]; the same
// bundle with one entry of the log comes out. The entry is Rekor's hashedrekord
// 0.0.2: the SHA-256 of the DSSE pre-authentication encoding, the signature and
// the certificate, as canonical JSON. It is the same for the same signature, so
// that a draft that is entered twice has one place in the log. Every answer is
// verified before it is handed out: leaf, path, root, the log's signature, and
// the witnesses' where they are asked for.
//
// # The built-in log
//
// [Open] opens a tile log (c2sp.org/tlog-tiles) in a directory, kept by
// Tessera. Its checkpoints (c2sp.org/tlog-checkpoint) are signed with the log's
// key, one at most every [CheckpointInterval]; calls of that time share one.
//
//	TILES/1/checkpoint          the latest checkpoint
//	TILES/1/tile/LEVEL/INDEX    hashes
//	TILES/1/tile/entries/INDEX  entries
//	TILES/1/.state/             Tessera's own; never served
//	HISTORY/logs.json           the logs that there were and the one that is
//	HISTORY/1.checkpoints       every checkpoint that log 1 ever signed
//
// What is in TILES is public and may lie on another disk. HISTORY is what the
// log must never contradict, and is read before anything is signed: the key
// signs no tree that is smaller than, or no extension of, the last one that it
// signed, whatever became of TILES. A line of *.checkpoints is
//
//	SIZE ROOT SIGNATURE
//
// with root and note signature in base64, and is durable before its signature
// leaves the process.
//
// A log has one key for life. One in a file has it under another name until
// logs.json names its log, so that no crash leaves a key that seems to have
// signed. [Rotate] ends it and begins the next with a new
// key, name and directory; the old one stays among [Log.Trusted] and is served.
//
// # Copies
//
// HISTORY, TILES and key are copied together, in one snapshot or while no process
// has the log open; parts of different times are refused. An older state that is
// put back as a whole forks the log: it would sign again what it has signed
// otherwise. Only bundles and witnesses know of that, so whoever restores one calls
// [Rotate] before the log is opened.
//
// # An outside Rekor
//
// [NewRekor] enters signatures in a Rekor (version 2) by URL. Its answer is
// hostile input until it has been verified with the trusted root.
//
// # Trust
//
// A reader of TILES and HISTORY learns what was signed and when, a writer can
// stop the log. Who has the log's key can fork it, which [Audit], monitors and
// witnesses find out; what an attestation says is protected by the
// authority's keys alone.
package tlog
