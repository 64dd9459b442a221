#!/usr/bin/env python3
# check: build=asan timeout=240
"""A restore onto a host whose sorting library has another version: the indexes that the old one may
have ordered are found, and with --reindex=auto rebuilt; no others are. The other version is faked
in the catalogues before the snapshot."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tm import *  # noqa: E402, F403
from t_restore import Story, journal_of  # noqa: E402

OLD = "1.2.3"
SORTED = """
create table names (id int, n text);
insert into names select i, 'name ' || i from generate_series(1, 500) i;
create index by_n on names (n);
create index by_two on names (id, n);
create index by_upper on names (upper(n));
create index by_less on names ((n < 'name 3'));
create index by_part on names (id) where n > 'name 3';
create index by_id on names (id);
create index by_c on names (n collate "C");
create index by_sum on names ((id + 1)) where id > 7;
create schema "Odd one";
create table "Odd one"."a.b" (n text primary key);
"""
SUSPECT = {'public.by_n', 'public.by_two', 'public.by_upper', 'public.by_less', 'public.by_part',
           '"Odd one"."a.b_pkey"'}
FILES = ("select c.oid::regclass || ' ' || pg_relation_filenode(c.oid) from pg_class c"
         " join pg_index i on i.indexrelid = c.oid where c.oid >= 16384 and c.relkind = 'i'"
         " and relnamespace <> 'pg_toast'::regnamespace order by 1")


def files(server, db):
    return dict(line.rsplit(" ", 1) for line in server.psql(FILES, db).splitlines())


def versions(server):
    return (server.psql("select datcollversion from pg_database where datname = 'sorted'"),
            server.psql("select string_agg(collversion, ',' order by collname) from pg_collation"
                        " where collname in ('de-x-icu', 'fr-x-icu')"))


def prepare(story):
    server = story.node.start() and story.server
    server.psql("create database sorted template template0 locale_provider icu icu_locale 'en'")
    server.psql(SORTED, "sorted")
    server.psql("create table german (i int primary key, n text collate \"de-x-icu\");\n"
                "create index by_german on german (n);\n"
                "create index by_expression on german (i) where n < 'x';\n"
                "create index by_default on german (i, (n collate \"default\"))")
    good = versions(server)
    server.psql(f"update pg_database set datcollversion = '{OLD}' where datname = 'sorted';\n"
                f"update pg_collation set collversion = '{OLD}'"
                " where collname in ('de-x-icu', 'fr-x-icu')")
    is_status(story.node.cli("snapshot", "--tag", "t1"), 0, "snapshot with other versions")
    return good


def found(story):
    return sorted((c["database"], c["collation"], c["recorded"], c["refreshed"])
                  for c in journal_of(story.node)["verification"]["collations"])


def collations(refreshed):
    return [("postgres", '"de-x-icu"', OLD, refreshed), ("postgres", '"fr-x-icu"', OLD, refreshed),
            ("sorted", "", OLD, refreshed)]


def test_none(story):
    before = files(story.server, "sorted")
    story.restore("--verify=quick")
    result = journal_of(story.node)["verification"]
    is_((result["ok"], result["indexes"]), (True, []), "reindex=none: nothing is rebuilt")
    is_(found(story), collations(False), "reindex=none: the collations are listed")
    is_(result["collation_count"], 3, "reindex=none: and counted")
    is_(len(result["warnings"]), 2, "reindex=none: a warning for each database")
    like(" ".join(result["warnings"]),
         "database 'sorted': 1 collations .* 6 indexes .*reindex=auto",
         "reindex=none: that says what to do")
    is_(versions(story.server), (OLD, f"{OLD},{OLD}"), "reindex=none: the versions stay")
    is_(files(story.server, "sorted"), before, "reindex=none: and so do the indexes")


def test_auto(story, good):
    before = files(story.server, "sorted")
    before_german = files(story.server, "postgres")
    story.restore("--reindex=auto")
    result = journal_of(story.node)["verification"]
    is_({i["index"] for i in result["indexes"] if i["database"] == "sorted"}, SUSPECT,
        "reindex=auto: all indexes that the database's collation may order")
    is_({i["index"] for i in result["indexes"] if i["database"] == "postgres"},
        {"public.by_german", "public.by_expression"}, "reindex=auto: and those of a column's one")
    is_([i for i in result["indexes"] if not i["rebuilt"]], [], "reindex=auto: all were rebuilt")
    is_(found(story), collations(True), "reindex=auto: the collations are listed as refreshed")
    is_(versions(story.server), good, "reindex=auto: their versions are this host's")
    after = files(story.server, "sorted")
    is_({name for name, file in after.items() if before[name] != file},
        {name.removeprefix("public.") for name in SUSPECT}, "reindex=auto: those files are new")
    after = files(story.server, "postgres")
    is_({name for name, file in after.items() if before_german[name] != file},
        {"by_german", "by_expression"}, "reindex=auto: of the other database as well")
    ok("warnings" not in result, "reindex=auto: nothing is left to warn of")


def test_paused(story):
    """In recovery nothing can be rebuilt."""
    story.restore("--reindex=auto", "--action=pause", "--verify=quick")
    result = journal_of(story.node)["verification"]
    is_((result["writable"], result["indexes"]), (False, []), "paused: nothing is rebuilt")
    like(" ".join(result["warnings"]), "promote the server, REINDEX them", "paused: a warning")


def main():
    box = need_root() or Sandbox("collation")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    story = Story(box, "c")
    good = prepare(story)
    test_none(story)
    test_auto(story, good)
    test_paused(story)
    story.end()


if __name__ == "__main__":
    run(main)
