"""The rules of the two layers of intentions."""

from collections.abc import Mapping

import pytest

from meshrun.proxy.intentions import Action, Intention, Permission
from meshrun.supervisor.intention_book import (
    IntentionBook,
    IntentionExistsError,
    IntentionInFileError,
    IntentionNotFoundError,
    Pair,
)


class Store:
    """Runtime intentions in memory."""

    def __init__(self) -> None:
        self.kept: dict[Pair, Intention] = {}

    def intentions(self) -> list[Intention]:
        return list(self.kept.values())

    def put_intention(self, intention: Intention) -> None:
        self.kept[intention.pair] = intention

    def delete_intention(self, pair: Pair) -> None:
        del self.kept[pair]


IN_FILE = Intention(
    source="web", destination="db", action="allow", id="in-file", where="mesh.toml:12"
)


def create(
    book: IntentionBook,
    pair: Pair,
    action: Action = "allow",
    *,
    replace: bool = False,
    now: float = 1000.0,
    made_id: str = "made",
    meta: Mapping[str, str] | None = None,
    permissions: tuple[Permission, ...] = (),
) -> Intention:
    return book.create(
        *pair,
        action,
        permissions=permissions,
        description="",
        meta=meta or {},
        replace=replace,
        now=now,
        id=made_id,
    )


@pytest.fixture
def book() -> IntentionBook:
    return IntentionBook([IN_FILE], Store())


def test_a_created_intention_is_in_force(book: IntentionBook) -> None:
    made = create(book, ("web", "cache"), "deny", meta={"team": "shop"})
    assert made == Intention(
        source="web",
        destination="cache",
        action="deny",
        id="made",
        origin="runtime",
        where="runtime",
        meta={"team": "shop"},
        created_at=1000.0,
    )
    assert book.find(("web", "cache")) == book.find("made") == made


def test_effective_is_in_evaluation_order(book: IntentionBook) -> None:
    create(book, ("*", "*"), "deny", made_id="1")
    create(book, ("web", "*"), made_id="2")
    create(book, ("*", "db"), made_id="3")
    assert [str(i) for i in book.effective()] == [
        "web => db (allow)",
        "* => db (allow)",
        "web => * (allow)",
        "* => * (deny)",
    ]


def test_creating_what_stands_in_the_file_fails_and_names_the_line(book: IntentionBook) -> None:
    with pytest.raises(IntentionExistsError, match=r"web => db \(allow\) exists.*mesh\.toml:12"):
        create(book, ("web", "db"), "deny")
    assert book.find(("web", "db")) == IN_FILE


def test_creating_a_runtime_pair_twice_fails(book: IntentionBook) -> None:
    create(book, ("web", "cache"))
    with pytest.raises(IntentionExistsError, match=r"made at run time.*-replace"):
        create(book, ("web", "cache"), "deny")


def test_replace_lays_a_runtime_intention_over_the_file(book: IntentionBook) -> None:
    create(book, ("web", "db"), "deny", replace=True)
    found = book.find(("web", "db"))
    assert found is not None
    assert (found.action, found.origin, found.id) == ("deny", "runtime", "made")


def test_replace_keeps_id_and_birth_of_a_runtime_intention(book: IntentionBook) -> None:
    create(book, ("web", "cache"), made_id="first", now=1.0)
    found = create(book, ("web", "cache"), "deny", replace=True, made_id="second", now=2.0)
    assert book.find("first") == found
    assert (found.action, found.created_at) == ("deny", 1.0)


def test_replace_of_nothing_creates(book: IntentionBook) -> None:
    made = create(book, ("web", "cache"), replace=True)
    assert book.find(("web", "cache")) == made


def test_deleting_a_runtime_intention_brings_the_files_back(book: IntentionBook) -> None:
    create(book, ("web", "db"), "deny", replace=True)
    assert book.delete(("web", "db")).action == "deny"
    assert book.find(("web", "db")) == IN_FILE


def test_deleting_what_stands_only_in_the_file_names_the_line_and_the_way_out(
    book: IntentionBook,
) -> None:
    with pytest.raises(IntentionInFileError) as caught:
        book.delete(("web", "db"))
    assert str(caught.value) == (
        "cannot delete web => db (allow): it stands in mesh.toml:12; remove it there, or overrule "
        "it with: meshrun intentions create -deny -replace web db"
    )


def test_permissions_are_kept_and_named_in_refusals(book: IntentionBook) -> None:
    get = Permission(action="allow", methods=("GET",))
    made = create(book, ("web", "api"), "deny", permissions=(get,))
    assert made.permissions == (get,)
    with pytest.raises(IntentionExistsError, match=r"cannot create web => api \(2 permissions\)"):
        create(book, ("web", "api"), "deny", permissions=(get, get))


def test_the_way_out_of_permissions_opens_nothing() -> None:
    get = Permission(action="allow", methods=("GET",))
    in_file = Intention(
        source="web", destination="db", action="deny", permissions=(get,), where="mesh.toml:3"
    )
    with pytest.raises(IntentionInFileError, match="create -deny -replace web db"):
        IntentionBook([in_file], Store()).delete(in_file.pair)


def test_the_way_out_can_be_pasted_into_a_shell() -> None:
    book = IntentionBook(
        [Intention(source="*", destination="db", action="deny", where="mesh.toml:3")], Store()
    )
    with pytest.raises(IntentionInFileError, match=r"create -allow -replace '\*' db"):
        book.delete(("*", "db"))


def test_deleting_nothing_says_so_as_consul_does(book: IntentionBook) -> None:
    with pytest.raises(IntentionNotFoundError) as caught:
        book.delete(("a", "b"))
    assert str(caught.value) == 'Intention not found with source "a" and destination "b"'


def test_nothing_is_found_where_nothing_is(book: IntentionBook) -> None:
    assert book.find(("a", "b")) is None
    assert book.find("a") is None
