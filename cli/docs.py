"""Writes the parts of the documentation that come from the code: `python -m cli.docs`, or `make docs`."""

from pathlib import Path

from cli.plan import ROOT
from shared.metrics import METRICS
from shared.settings.render import dotenv_example, markdown

BEGIN = "<!-- {what}: written by `make docs` -->\n"
END = "<!-- end of {what} -->\n"


def documents(root: Path = ROOT) -> dict[Path, str]:
    """Each document that holds generated text, with the content that it should have."""
    readme, metrics = root / "README.md", root / "docs" / "metrics.md"
    return {
        readme: _with(readme, "settings", markdown()),
        metrics: _with(metrics, "metrics", metrics_table()),
        root / ".env.example": dotenv_example(),
    }


def _with(document: Path, what: str, generated: str) -> str:
    """The document with its generated part replaced."""
    begin, end = BEGIN.format(what=what), END.format(what=what)
    head, _, rest = document.read_text(encoding="utf-8").partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{generated}\n{end}{tail}"


def metrics_table() -> str:
    """Every metric with its labels and its meaning."""
    lines = ["| Metric | Type | Labels | Of | Meaning |", "|---|---|---|---|---|"]
    for metric in METRICS.values():
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "-"
        of = metric.of[0] if len(metric.of) == 1 else "every process"
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {of} | {metric.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for path, content in documents().items():
        path.write_text(content, encoding="utf-8")
        print(f"wrote {path.name}")
