"""The table for people holds every setting, and what it prints can be read back."""

from pathlib import Path

from shared.settings import dotenv, load_up, render
from shared.settings.source import every_row


def test_the_markdown_table_has_every_setting_once():
    table = render.markdown()
    for row in every_row():
        assert table.count(f"| `{row.name}`") == 1, row.name
    assert "`SLUICE_PROVIDER_<NAME>_BASE_URL`" in table


def test_the_example_without_its_hashes_is_a_valid_file(tmp_path: Path):
    lines = [
        line.removeprefix("# ")
        for line in render.dotenv_example().splitlines()
        if line.startswith("# ") and "=" in line.split(" ")[1] and "<NAME>" not in line
    ]
    assert len(lines) == len(every_row())
    entries, problems = dotenv.parse("\n".join(lines), ".env.example")
    assert problems == []
    example = {name: entry.text for name, entry in entries.items()}
    example |= {"SLUICE_SECRET_KEY": "0123456789abcdef0123456789abcdef", "SLUICE_STATE_DIR": str(tmp_path)}
    assert load_up(example, None).frontend.port == 8088


def test_the_standing_table_masks_secrets_and_names_origins(tmp_path: Path):
    (tmp_path / ".env").write_text("SLUICE_PORT=wrong\nSLUICE_PROVIDER_BOX_BASE_URL=https://box.example\n")
    table = {one.name: one for one in render.standing({"OPENAI_API_KEY": "sk-hidden"}, tmp_path / ".env")}
    assert (table["SLUICE_PORT"].value, table["SLUICE_PORT"].origin) == ("wrong", ".env line 1")
    assert (table["OPENAI_API_KEY"].value, table["OPENAI_API_KEY"].origin) == ("***", "environment")
    assert (table["SLUICE_HOST"].value, table["SLUICE_HOST"].origin) == ("127.0.0.1", "default")
    assert table["SLUICE_PROVIDER_BOX_BASE_URL"].value == "https://box.example"
    assert "hidden" not in repr(table)
