-- What sources say of a paper, every different word of each: none is lost to one that says less. `paper` follows from it.
CREATE TABLE told (
    id TEXT NOT NULL, source TEXT NOT NULL, print TEXT NOT NULL,  -- the fingerprint of version and fields
    version INTEGER NOT NULL, fields TEXT NOT NULL,
    PRIMARY KEY (id, source, print)
) STRICT, WITHOUT ROWID;

CREATE TABLE paper (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL,
    title TEXT NOT NULL, abstract TEXT NOT NULL,
    authors TEXT NOT NULL, categories TEXT NOT NULL,  -- JSON lists
    published TEXT NOT NULL, updated TEXT NOT NULL,
    comment TEXT NOT NULL, journal TEXT NOT NULL, doi TEXT NOT NULL,
    listed TEXT NOT NULL DEFAULT ''  -- the latest day on which a source listed it
) STRICT;
CREATE INDEX paper_published ON paper (published);
CREATE INDEX paper_listed ON paper (listed);

CREATE TABLE listing (
    source TEXT NOT NULL, day TEXT NOT NULL, id TEXT NOT NULL, rank INTEGER NOT NULL,
    PRIMARY KEY (source, day, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX listing_day ON listing (day);
CREATE INDEX listing_id ON listing (id);

CREATE TABLE fact (
    id TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, source TEXT NOT NULL, at TEXT NOT NULL,
    PRIMARY KEY (id, key, source, at)
) STRICT, WITHOUT ROWID;

-- What the user says. No import touches it.
CREATE TABLE mark (
    id TEXT PRIMARY KEY,
    read INTEGER NOT NULL DEFAULT 0, later INTEGER NOT NULL DEFAULT 0, hidden INTEGER NOT NULL DEFAULT 0,
    seed INTEGER NOT NULL DEFAULT 0,
    note TEXT NOT NULL DEFAULT '',
    changed TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE topic (
    name TEXT PRIMARY KEY,
    query TEXT NOT NULL,  -- as one would type it into the search
    likes TEXT NOT NULL, dislikes TEXT NOT NULL,  -- JSON lists of identifiers
    changed TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE vector (
    id TEXT NOT NULL, embedder TEXT NOT NULL, text TEXT NOT NULL, -- the text's SHA-256
    width INTEGER NOT NULL, data BLOB NOT NULL,  -- little-endian float32, of length 1
    PRIMARY KEY (id, embedder)
) STRICT, WITHOUT ROWID;

-- When a source was last asked, with what came of it.
CREATE TABLE asked (
    source TEXT PRIMARY KEY, at TEXT NOT NULL, outcome TEXT NOT NULL, cursor TEXT NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;

-- `ours`: this project's own summary and topics, of its papers.
CREATE VIRTUAL TABLE words USING fts5 (
    title, abstract, authors, note, ours, tokenize = "porter unicode61 remove_diacritics 2"
);
