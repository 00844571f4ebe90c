"""Pictures are files, notebooks show them, and lessons can do without."""

import sys

from minillm.lessons import picture


def draw(figure) -> None:
    figure.subplots().plot([1, 2])


def test_a_picture_is_a_png_in_the_cache_folder_that_notebooks_show(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path))
    drawn = picture("07_line", draw)
    assert drawn
    assert capsys.readouterr().out == f"picture: {tmp_path / 'pictures' / '07_line.png'}\n"
    assert drawn._repr_png_()[:4] == b"\x89PNG"
    assert [path.name for path in drawn.path.parent.iterdir()] == ["07_line.png"]


def test_without_matplotlib_it_is_left_out_and_says_so(monkeypatch, capsys):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert picture("07_line", draw) is None
    assert "07_line is left out" in capsys.readouterr().out
