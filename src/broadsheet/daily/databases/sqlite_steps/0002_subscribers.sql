-- Who gets a digest by mail, and of what.
CREATE TABLE subscriber (
    address TEXT PRIMARY KEY,
    secret TEXT NOT NULL UNIQUE,  -- in the links by which it is confirmed and ended
    query TEXT NOT NULL,  -- as one would type it into the search; empty: all that was listed
    asked TEXT NOT NULL, confirmed TEXT NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;

-- What was or is to be sent. A letter is written down whole before it is sent, so that sending it again sends the same.
CREATE TABLE letter (
    number INTEGER PRIMARY KEY,
    address TEXT NOT NULL, kind TEXT NOT NULL,  -- "confirm" or "issue"
    message TEXT NOT NULL UNIQUE,  -- its Message-ID
    bytes BLOB NOT NULL,
    made TEXT NOT NULL, sent TEXT NOT NULL DEFAULT ''
) STRICT;

-- Which papers a subscriber has had, so that each comes once.
CREATE TABLE had (
    address TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (address, id)
) STRICT, WITHOUT ROWID;
