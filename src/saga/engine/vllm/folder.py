"""Whether two engines mean the same folder, wherever each of them has it mounted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from uuid import uuid4

NAME: Final = "saga-folder-id"


def folder_id(folder: Path) -> str:
    """A text that is in the folder; the first who asks puts it there. Raises OSError."""
    file = folder / NAME
    draft = folder / f"{NAME}.{uuid4().hex}"
    draft.write_text(uuid4().hex)
    try:
        os.link(draft, file)  # whole or not at all
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return file.read_text()
