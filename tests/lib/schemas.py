"""What `--json` prints, against conf/schema: an undocumented field fails. By python3-jsonschema."""
import json
import os

import tm

try:
    import jsonschema
except ImportError:
    jsonschema = None

# Verb: the schema of a line that it prints.
VERBS = {"check": "check", "list": "snapshot", "list --wal": "wal", "show": "snapshot",
         "status": "health", "jobs": "job", "snapshot": "job", "restore": "job", "verify": "job",
         "expire": "job", "export": "job", "pin": "pin", "unpin": "pin", "key": "key",
         "init": "init", "cluster status": "cluster", "cluster restore": "job",
         "cluster snapshot": "job"}
_validators = {}


def _validator(name):
    if name not in _validators:
        with open(os.path.join(tm.SOURCE, "conf/schema", name + ".json"), encoding="utf-8") as file:
            schema = json.load(file)
        jsonschema.Draft202012Validator.check_schema(schema)
        _validators[name] = jsonschema.Draft202012Validator(schema)
    return _validators[name]


def problems(name, document):
    """Why it is not what conf/schema/NAME.json says, as texts."""
    found = []
    for error in _validator(name).iter_errors(document):
        while error.context:  # of alternatives: the one that came nearest
            error = max(error.context, key=lambda e: len(e.absolute_path))
        where = "/".join(map(str, error.absolute_path))
        found.append(f"conf/schema/{name}.json: {where or 'top'}: {error.message[:300]}")
    return found


def conform(cli, what, *args, want=None):
    """`tidemark ARGS --json`: every line conforms; the documents. want: how many, at least."""
    verb = args[0]
    name = VERBS.get(" ".join(args[:2])) or VERBS[verb]
    if jsonschema is None:
        tm.skip("python3-jsonschema is not installed")
        return []
    done = cli(*args, "--json")
    documents = [json.loads(line) for line in done.out.splitlines()]
    found = [text for document in documents for text in problems(name, document)]
    if not tm.ok(not found, f"{what}: {' '.join(args)} --json is what its schema says"):
        tm.diag("\n".join(found))
    if want is not None and not tm.ok(len(documents) >= want, f"{what}: {verb}: {want} at least"):
        tm.diag(done.out[-2000:] + done.err[-2000:])
    return documents


def conform_all(cli, what, snapshots=0, jobs=0):
    """Every verb that shows something, and each snapshot and job by itself."""
    conform(cli, what, "status", want=1)
    conform(cli, what, "check", want=5)
    conform(cli, what, "list", "--wal")
    for record in conform(cli, what, "list", want=snapshots):
        conform(cli, what, "show", record["id"], want=1)
    for job in conform(cli, what, "jobs", want=jobs):
        conform(cli, what, "jobs", job["id"], want=1)
