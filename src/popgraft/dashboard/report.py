"""The report of a run: one HTML file that needs nothing else."""

from collections.abc import Iterable
from pathlib import Path

from popgraft.dashboard.data import read
from popgraft.dashboard.figures import figures
from popgraft.dashboard.own import named
from popgraft.dashboard.page import Account, page
from popgraft.dashboard.section import MakeSection
from popgraft.dashboard.summary import summary
from popgraft.disk import reason, write_atomic
from popgraft.errors import StoreError
from popgraft.store.boundary import reading

NAME = "report.html"


def report(
    path: str | Path,
    out: str | Path | None = None,
    compare: str | Path | None = None,
    sections: Iterable[str | MakeSection] = (),
) -> Path:
    """Writes the report of a run, which may still be going on.

    Args:
        path: the run folder.
        out: the file to write; `report.html` in the run folder where none is given.
        compare: folder of another run, such as a random search, whose best score is shown beside.
        sections: of your own, behind the others: functions from a `popgraft.dashboard.View` to a
            `popgraft.dashboard.Section`, or `module:function`. What one of them raises is told in its place.

    Returns:
        The file.

    Raises:
        StoreError: there is no run, its database is damaged, or the file cannot be written.
        ConfigError: its configuration is damaged, or there is no such function.
    """
    own = named(sections)
    data, other = read(path), read(compare) if compare is not None else None
    file = Path(out).expanduser() if out is not None else data.path / NAME
    with reading(data.path):
        account = Account(data.path.name, summary(data, other), figures(data, other, own=own))
        document = page(data.path.resolve().name, [account]).encode()
    try:
        write_atomic(file, document)
    except OSError as error:
        raise StoreError(f"cannot write the report {file}: {reason(error, file)}") from None
    return file
