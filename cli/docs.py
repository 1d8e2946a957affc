"""Writes the parts of the documentation that come from the code: `python -m cli.docs`, or `make docs`."""

from pathlib import Path

from cli.plan import ROOT
from shared.settings.render import dotenv_example, markdown

BEGIN = "<!-- settings: written by `make docs` -->\n"
END = "<!-- end of settings -->\n"


def documents(root: Path = ROOT) -> dict[Path, str]:
    """Each document that holds generated text, with the content that it should have."""
    readme = root / "README.md"
    head, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    return {
        readme: f"{head}{BEGIN}\n{markdown()}\n{END}{tail}",
        root / ".env.example": dotenv_example(),
    }


if __name__ == "__main__":
    for path, content in documents().items():
        path.write_text(content, encoding="utf-8")
        print(f"wrote {path.name}")
