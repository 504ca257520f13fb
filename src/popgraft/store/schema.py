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

LATER = {
    "checksums": """
CREATE TABLE IF NOT EXISTS checksums (
    kind INTEGER NOT NULL,
    number INTEGER NOT NULL,
    value INTEGER NOT NULL,
    PRIMARY KEY (kind, number)
) WITHOUT ROWID
""",
    "adoptions": """
CREATE TABLE IF NOT EXISTS adoptions (
    generation INTEGER NOT NULL,
    member INTEGER NOT NULL,
    parent INTEGER NOT NULL,
    parent_generation INTEGER NOT NULL,
    PRIMARY KEY (generation, member),
    FOREIGN KEY (generation, member) REFERENCES members,
    FOREIGN KEY (parent_generation, parent) REFERENCES members
)
""",
}
"""Tables that runs of earlier versions lack until they are resumed: checksums of the rows of the others, by table (see
`integrity`) and number; and whose hyperparameters a member took, where they are not those of whose weights it has."""
