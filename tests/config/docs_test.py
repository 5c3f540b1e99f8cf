import pytest

from jaxdet.config import docs
from jaxdet.config.keys import KEYS
from jaxdet.config.limits import LIMITS


@pytest.mark.parametrize("name", docs.PAGES)
def test_pages_are_up_to_date(name):
    written = (docs.DOCS / name).read_text()
    assert docs.page(name) == written, "python -m jaxdet.config.docs"
    assert written.count(docs.BEGIN) == written.count(docs.END) == 1


def test_every_key_and_limit_is_listed():
    keys, limits = docs.keys(), docs.limits()
    assert all(f"| `{name}` |" in keys for name in KEYS)
    assert all(key.meaning in limits for key in LIMITS)


def test_what_a_person_wrote_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(docs, "DOCS", tmp_path)
    (tmp_path / "serve.md").write_text(f"before\n{docs.BEGIN}old\n{docs.END}after\n")
    page = docs.page("serve.md")
    assert page == f"before\n{docs.BEGIN}{docs.limits()}{docs.END}after\n" and "old" not in page
