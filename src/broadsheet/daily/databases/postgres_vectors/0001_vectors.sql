CREATE TABLE IF NOT EXISTS vectors (
    id plain, embedder plain, text plain, data vector NOT NULL,  -- of length 1
    PRIMARY KEY (id, embedder)
);
