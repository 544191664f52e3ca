-- The first version of the store. Nothing that SQLite 3.31 does not read: the `sqlite3` of older distributions is to open it.
-- Times are nanoseconds since 1970, UTC. `parts` has what many lines share; a column that is not known is NULL.
CREATE TABLE runs (
  id          INTEGER PRIMARY KEY,
  reporter    TEXT    NOT NULL,          -- agent and host, JSON
  started_ns  INTEGER NOT NULL,
  alive_ns    INTEGER NOT NULL,          -- the last time that lines were stored
  ended_ns    INTEGER,                   -- NULL: it runs, or it was ended by force
  line        INTEGER NOT NULL,          -- the last line before it
  account     TEXT                       -- JSON
);
CREATE TABLE gaps (
  id          INTEGER PRIMARY KEY,
  run         INTEGER NOT NULL REFERENCES runs,
  noted_ns    INTEGER NOT NULL,          -- when this was written
  from_ns     INTEGER NOT NULL,          -- the first and the last of what is missing
  until_ns    INTEGER NOT NULL,
  lines       INTEGER NOT NULL,
  packets     INTEGER NOT NULL,
  why         TEXT    NOT NULL,          -- what could not be stored, or was removed
  line        INTEGER NOT NULL           -- the last line before this was written
);
CREATE INDEX gaps_by_reason ON gaps(why, run);
CREATE TABLE ages (
  at_ns       INTEGER PRIMARY KEY,       -- of the store's own time, which no wrong clock moves far
  line        INTEGER NOT NULL           -- the last line that was stored before
);
CREATE TABLE shares (
  id          INTEGER PRIMARY KEY,
  name        TEXT    NOT NULL UNIQUE,   -- a user or a namespace that fills the store
  weight      INTEGER NOT NULL DEFAULT 0 -- bytes that it takes, about: the triggers keep it
);
CREATE TABLE stories (
  id          INTEGER PRIMARY KEY,
  story       BLOB    NOT NULL UNIQUE,   -- an incident of one user, unit or container
  incident    BLOB    NOT NULL,
  share       INTEGER NOT NULL REFERENCES shares,
  rule        TEXT,                      -- hash of the rule's statement
  first_ns    INTEGER NOT NULL,
  last_ns     INTEGER NOT NULL,
  first_line  INTEGER NOT NULL,
  last_line   INTEGER NOT NULL,
  lines       INTEGER NOT NULL,          -- rows of `lines`
  packets     INTEGER NOT NULL,          -- of all lines, those that were folded or removed too
  bytes       INTEGER NOT NULL,
  background  INTEGER NOT NULL           -- 1: nobody misses it, such as multicast DNS
);
CREATE INDEX stories_by_time ON stories(last_ns);
CREATE INDEX stories_by_last ON stories(last_line);
CREATE INDEX stories_by_share ON stories(share, last_ns);
CREATE INDEX stories_that_matter ON stories(share, last_ns) WHERE NOT background;
CREATE INDEX stories_by_first ON stories(share, first_ns);
CREATE INDEX stories_with_more ON stories(share, last_ns) WHERE lines > 2;
CREATE INDEX stories_by_start ON stories(first_ns);
CREATE INDEX stories_by_incident ON stories(incident);
CREATE INDEX stories_by_rule ON stories(rule) WHERE rule IS NOT NULL;
CREATE TABLE processes (
  id          INTEGER PRIMARY KEY,
  hash        BLOB    NOT NULL UNIQUE,
  share       INTEGER NOT NULL,          -- of the first line with it
  pid         INTEGER,
  name        TEXT,
  executable  TEXT,
  uid         INTEGER,
  unit        TEXT,
  container   TEXT,
  body        TEXT    NOT NULL,          -- the sender, JSON
  weight      INTEGER NOT NULL           -- bytes that it takes, about
);
CREATE INDEX processes_by_pid ON processes(pid);
CREATE INDEX processes_by_user ON processes(uid);
CREATE TABLE documents (
  id          INTEGER PRIMARY KEY,
  sha256      TEXT    NOT NULL UNIQUE,   -- of the text: what rules have as `ruleset_sha256`
  share       INTEGER NOT NULL,          -- of the first who had it
  stored_ns   INTEGER NOT NULL,
  bytes       INTEGER NOT NULL,          -- of the text
  body        BLOB    NOT NULL,          -- compressed: sqlar_uncompress(body, bytes)
  weight      INTEGER NOT NULL           -- bytes that it takes, about
);
CREATE TABLE states (
  id          INTEGER PRIMARY KEY,
  run         INTEGER NOT NULL REFERENCES runs,
  share       INTEGER NOT NULL,
  kind        TEXT    NOT NULL,          -- ruleset, routes, unit
  subject     TEXT    NOT NULL,          -- a network namespace, or a unit
  at_ns       INTEGER NOT NULL,          -- from this time on it was seen to be so
  sha256      TEXT    NOT NULL,          -- its text, in `documents`
  line        INTEGER NOT NULL           -- the last line before it was stored
);
CREATE INDEX states_by_subject ON states(kind, subject, at_ns);
CREATE INDEX states_by_document ON states(sha256);
CREATE INDEX states_by_share ON states(share, at_ns);
CREATE TABLE parts (
  id          INTEGER PRIMARY KEY,
  hash        BLOB    NOT NULL UNIQUE,
  share       INTEGER NOT NULL,          -- of the first line with it
  destination TEXT,
  port        INTEGER,
  protocol    INTEGER,
  ruleset     TEXT,                      -- SHA-256: it may be in `documents`
  body        TEXT    NOT NULL,          -- what a line says beside its sender, times and numbers, JSON
  weight      INTEGER NOT NULL           -- bytes that it takes, about
);
CREATE INDEX parts_by_destination ON parts(destination, port);
CREATE INDEX parts_by_ruleset ON parts(ruleset) WHERE ruleset IS NOT NULL;
CREATE TABLE lines (
  id          INTEGER PRIMARY KEY,
  run         INTEGER NOT NULL REFERENCES runs,
  line        BLOB,
  sequence    INTEGER,
  action      TEXT    NOT NULL,
  at_ns       INTEGER NOT NULL,
  start_ns    INTEGER,
  end_ns      INTEGER,
  share       INTEGER NOT NULL,          -- of its story, where it has one
  story       INTEGER REFERENCES stories,
  process     INTEGER REFERENCES processes,
  part        INTEGER NOT NULL REFERENCES parts,
  source      TEXT,                      -- JSON
  packets     INTEGER NOT NULL,
  bytes       INTEGER NOT NULL,
  folded      INTEGER NOT NULL DEFAULT 1 -- how many lines this row stands for
);
CREATE INDEX lines_by_time ON lines(at_ns);
CREATE INDEX lines_by_story ON lines(story, at_ns) WHERE story IS NOT NULL;
CREATE INDEX lines_of_no_story ON lines(share, at_ns) WHERE story IS NULL;
CREATE INDEX lines_by_process ON lines(process) WHERE process IS NOT NULL;
CREATE INDEX lines_by_part ON lines(part);
CREATE INDEX lines_by_run ON lines(run);
CREATE TRIGGER line_stored AFTER INSERT ON lines BEGIN
  UPDATE shares SET weight = weight + 280 WHERE id = NEW.share; END;
CREATE TRIGGER line_removed AFTER DELETE ON lines BEGIN
  UPDATE shares SET weight = weight - 280 WHERE id = OLD.share; END;
CREATE TRIGGER story_stored AFTER INSERT ON stories BEGIN
  UPDATE shares SET weight = weight + 480 WHERE id = NEW.share; END;
CREATE TRIGGER story_removed AFTER DELETE ON stories BEGIN
  UPDATE shares SET weight = weight - 480 WHERE id = OLD.share; END;
CREATE TRIGGER process_stored AFTER INSERT ON processes BEGIN
  UPDATE shares SET weight = weight + NEW.weight WHERE id = NEW.share; END;
CREATE TRIGGER process_removed AFTER DELETE ON processes BEGIN
  UPDATE shares SET weight = weight - OLD.weight WHERE id = OLD.share; END;
CREATE TRIGGER part_stored AFTER INSERT ON parts BEGIN
  UPDATE shares SET weight = weight + NEW.weight WHERE id = NEW.share; END;
CREATE TRIGGER part_removed AFTER DELETE ON parts BEGIN
  UPDATE shares SET weight = weight - OLD.weight WHERE id = OLD.share; END;
CREATE TRIGGER document_stored AFTER INSERT ON documents BEGIN
  UPDATE shares SET weight = weight + NEW.weight WHERE id = NEW.share; END;
CREATE TRIGGER document_removed AFTER DELETE ON documents BEGIN
  UPDATE shares SET weight = weight - OLD.weight WHERE id = OLD.share; END;
CREATE TRIGGER state_stored AFTER INSERT ON states BEGIN
  UPDATE shares SET weight = weight + 300 WHERE id = NEW.share; END;
CREATE TRIGGER state_removed AFTER DELETE ON states BEGIN
  UPDATE shares SET weight = weight - 300 WHERE id = OLD.share; END;
CREATE TABLE state (
  name        TEXT PRIMARY KEY,
  value       INTEGER NOT NULL
) WITHOUT ROWID;
CREATE VIEW blocked AS SELECT
    l.id, datetime(l.at_ns / 1000000000, 'unixepoch') AS time, l.packets, w.name AS program, w.executable, w.pid, w.uid,
    json_extract(w.body, '$.user.name') AS user, w.unit, w.container, json_extract(p.body, '$.Blocked.netns') AS netns,
    json_extract(l.source, '$.ip') AS source, p.destination, p.port, p.protocol,
    json_extract(p.body, '$.Blocked.finding') AS finding, json_extract(p.body, '$.Blocked.rule.text') AS rule
  FROM lines l JOIN parts p ON p.id = l.part LEFT JOIN processes w ON w.id = l.process
  WHERE l.action = 'egress-blocked';
-- A recorder leaves word every five minutes at least.
CREATE VIEW not_recorded AS SELECT
    datetime(coalesce(a.ended_ns, a.alive_ns) / 1000000000, 'unixepoch') AS since,
    (SELECT datetime(b.started_ns / 1000000000, 'unixepoch') FROM runs b WHERE b.id > a.id ORDER BY b.id LIMIT 1) AS until,
    CASE WHEN a.ended_ns IS NOT NULL THEN 'stopped'
         WHEN EXISTS (SELECT 1 FROM runs b WHERE b.id > a.id) THEN 'ended by force: this is the last commit'
         ELSE 'no sign of the recorder: it was ended by force, or hangs' END AS why, NULL AS lines
  FROM runs a WHERE a.ended_ns IS NOT NULL OR EXISTS (SELECT 1 FROM runs b WHERE b.id > a.id)
    OR a.alive_ns / 1000000000 < strftime('%s', 'now') - 600
  UNION ALL SELECT datetime(from_ns / 1000000000, 'unixepoch'), datetime(until_ns / 1000000000, 'unixepoch'), why, lines
    FROM gaps WHERE why NOT LIKE 'removed %'
  ORDER BY 1;
CREATE VIEW removed AS SELECT
    datetime(noted_ns / 1000000000, 'unixepoch') AS time, datetime(from_ns / 1000000000, 'unixepoch') AS since,
    datetime(until_ns / 1000000000, 'unixepoch') AS until, why, lines, packets
  FROM gaps WHERE why LIKE 'removed %' ORDER BY 1;
