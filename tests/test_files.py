"""Files and folders that are whole or not there have the rights of any other, and leave nothing beside them."""

from __future__ import annotations

import os
import stat

import pytest
from conftest import make_static_model

from gcbs_st.files import save_model, write_text


def rights(path):
    """The permission bits of a file or folder."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_saved_model_has_the_rights_of_any_new_folder(tmp_path, mask):
    """Others may read it where they may read what the user makes."""
    before = os.umask(mask)
    try:
        (tmp_path / "plain").mkdir()
        save_model(make_static_model(), tmp_path / "model")
        save_model(make_static_model(), tmp_path / "model")  # over an older one
    finally:
        os.umask(before)
    assert rights(tmp_path / "plain") == rights(tmp_path / "model")
    assert ["model", "plain"] == sorted(path.name for path in tmp_path.iterdir())
    write_text(tmp_path / "text", "a")
    assert 0o644 == rights(tmp_path / "text")
