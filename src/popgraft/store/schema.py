"""The tables of a run's database."""

APPLICATION = 0x706F7067  # "popg" in the file's header tells a run from other databases
VERSION = 5
"""Of these tables; a database of another version is refused."""

SCHEMA = f"""
BEGIN;
CREATE TABLE members (
    generation INTEGER NOT NULL,
    member INTEGER NOT NULL,
    score REAL,
    stderr REAL,
    episodes INTEGER NOT NULL,
    steps INTEGER NOT NULL,
    hyperparams TEXT NOT NULL,
    PRIMARY KEY (generation, member)
);
CREATE TABLE grafts (
    generation INTEGER NOT NULL,
    member INTEGER NOT NULL,
    parent INTEGER NOT NULL CHECK (parent != member OR parent_generation < generation),
    parent_generation INTEGER NOT NULL,
    reason TEXT NOT NULL,
    score_before REAL,
    parent_score REAL,
    hyperparams_before TEXT NOT NULL,
    hyperparams_after TEXT NOT NULL,
    strategy TEXT NOT NULL,
    value_loss_ratio REAL,
    momentum_cosine REAL,
    return_before REAL,
    return_1 REAL,
    return_5 REAL,
    return_10 REAL,
    PRIMARY KEY (generation, member),
    FOREIGN KEY (generation, member) REFERENCES members,
    FOREIGN KEY (parent_generation, parent) REFERENCES members
);
CREATE TABLE metrics (
    generation INTEGER NOT NULL PRIMARY KEY,
    time REAL NOT NULL,
    members TEXT NOT NULL,
    population TEXT NOT NULL
);
CREATE TABLE events (
    time REAL NOT NULL,
    generation INTEGER,
    kind TEXT NOT NULL,
    text TEXT NOT NULL
);
CREATE TABLE sessions (
    time REAL NOT NULL,
    process INTEGER NOT NULL,
    host TEXT NOT NULL,
    config TEXT NOT NULL,
    versions TEXT NOT NULL
);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
COMMIT;
"""

CHECKSUMS = """
CREATE TABLE IF NOT EXISTS checksums (
    kind INTEGER NOT NULL,
    number INTEGER NOT NULL,
    value INTEGER NOT NULL,
    PRIMARY KEY (kind, number)
) WITHOUT ROWID
"""
"""Of the rows of the other tables, by table (see `integrity`) and number; runs of earlier versions have none until they
are resumed."""
