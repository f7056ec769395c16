"""docs/lbd.8 is what the command line says of itself."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_man_page_is_up_to_date(tmp_path):
    recipe = re.search(
        r"argparse-manpage(.*?)--output docs/lbd\.8\n", (ROOT / "Makefile").read_text(), re.DOTALL
    )
    arguments = (
        recipe[1].replace("\\\n", " ").replace("'a declarative layer-4 load balancer'", "DESCRIPTION").split()
    )
    arguments[arguments.index("DESCRIPTION")] = "a declarative layer-4 load balancer"
    made = tmp_path / "lbd.8"
    subprocess.run(
        [Path(sys.executable).with_name("argparse-manpage"), *arguments, "--output", made],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80", "PYTHONPATH": "src"},
        check=True,
    )
    # The first lines have the date.
    committed = (ROOT / "docs" / "lbd.8").read_text().splitlines()
    assert made.read_text().splitlines()[1:] == committed[1:], "run `make man`"
