"""The page of the package on an index: README.md with links that lead somewhere from there."""

import os
import re
from pathlib import Path

from setuptools import setup

# Where a release's files can be read, such as https://HOST/OWNER/pyro_vaeflow/blob/v0.2.0. Without
# it README's links to files are plain text: a package index would take them for its own pages.
address = os.environ.get("VAEFLOW_URL", "").rstrip("/")

page = re.sub(
    r"\[([^]]+)\]\((?!https?:)([^)]+)\)",
    rf"[\1]({address}/\2)" if address else r"\1",
    (Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
)
links = {"Source": address, "Changelog": f"{address}/CHANGELOG.md"} if address else {}
setup(long_description=page, project_urls=links)
