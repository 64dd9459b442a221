"""From rounds to medians, ratios, a table, JSON and a plot."""
import json
import os
import platform
import statistics
import subprocess

from tm import GIB

STORIES = {"now": "restore point right after the backup",
           "later": "restore point {segments} segments of WAL after the backup"}


def spread(values):
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3),
            "max": round(max(values), 3)}


def summary(rounds):
    """Medians of every figure of one case."""
    found = {"rounds": rounds, "right": all(x["right"] for x in rounds)}
    for phase in ("copy", "first_query"):
        found[phase] = {key: spread([x[phase][key] for x in rounds]) for key in rounds[0][phase]}
    found["steps"] = {key: spread([x["steps"][key] for x in rounds]) for key in rounds[0]["steps"]}
    found["command_s"] = spread([x["command_s"] for x in rounds])
    return found


def ratios(story):
    """Tidemark's medians divided by pgBackRest's."""
    def of(phase, key):
        return round(story["tidemark"][phase][key]["median"]
                     / max(story["pgbackrest"][phase][key]["median"], 1e-3), 3)
    return {"ratio": of("copy", "s"), "cpu_ratio": of("copy", "cpu_s"),
            "process_cpu_ratio": of("copy", "process_cpu_s"),
            "first_query_ratio": of("first_query", "s"),
            "first_query_cpu_ratio": of("first_query", "cpu_s")}


def store_result(results, references, backups):
    """What the JSON says of one store. The ratios of the store are the worse of its stories."""
    stories = {}
    for (story, name), rounds in results.items():
        stories.setdefault(story, {})[name] = summary(rounds)
    for story in stories.values():
        story.update(ratios(story))
    worst = {key: max(story[key] for story in stories.values())
             for key in ("ratio", "first_query_ratio", "cpu_ratio", "process_cpu_ratio")}
    return {**worst, "stories": stories, "references": references, "backups": backups}


def machine():
    model = "unknown processor"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    virtual = subprocess.run(["systemd-detect-virt"], stdout=subprocess.PIPE, text=True,
                             check=False).stdout.strip() if os.path.exists(
                                 "/usr/bin/systemd-detect-virt") else "not asked"
    return {"processor": model, "cores": os.cpu_count(), "kernel": platform.release(),
            "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, 1),
            "virtual": virtual or "none", "load_average": os.getloadavg()[0]}


def _row(name, case):
    def cell(value):
        return f"{value['median']:.2f} ({value['min']:.2f}–{value['max']:.2f})"
    copy, query = case["copy"], case["first_query"]
    return (f"  {name:24} {cell(copy['s']):>22} {cell(query['s']):>22} "
            f"{cell(copy['cpu_s']):>20} {cell(query['cpu_s']):>20} "
            f"{copy['target_written']['median'] / 1e9:7.2f} "
            + (f"{copy['repository_read']['median'] / 1e9:6.2f}"
               if copy["repository_read"]["median"] else f"{'–':>6}"))


def print_store(name, result, segments):
    print(f"\n== repository: {name}")
    print("  backups, one run each: " + "; ".join(
        f"{key} {x['s']:.1f} s, {x['cpu_s']:.1f} CPU-s" for key, x in result["backups"].items()))
    for story, cases in result["stories"].items():
        print(f"\n-- {STORIES[story].format(segments=segments)}")
        print(f"  {'median (min–max)':24} {'copy, s':>22} {'first query, s':>22} "
              f"{'copy, CPU-s':>20} {'first query, CPU-s':>20} {'GB out':>7} {'GB in':>6}")
        for key, case in cases.items():
            if isinstance(case, dict):
                print(_row(key, case))
        print(f"  tidemark / pgbackrest: copy {cases['ratio']:.2f} ×, first query "
              f"{cases['first_query_ratio']:.2f} ×, CPU of the copy {cases['cpu_ratio']:.2f} × "
              f"(processes alone {cases['process_cpu_ratio']:.2f} ×), CPU to the first query "
              f"{cases['first_query_cpu_ratio']:.2f} ×")
        steps = cases["tidemark"]["steps"]
        print("  tidemark's steps begin at: " + ", ".join(
            f"{step} {x['median']:.2f}" for step, x in steps.items() if step != "copied")
            + f"; the command ends at {cases['tidemark']['command_s']['median']:.2f} s")
    print_references(result["references"])
    if result["target"]:
        print_target(result["target"])


def print_references(references):
    write, read = (statistics.median(x[key] for x in references) for key in ("write_s", "read_s"))
    one = references[0]
    print(f"\n-- physical references (medians of {len(references)}; fio, O_DIRECT, 1 MiB × 8): "
          f"writing {one['bytes_written'] / 1e9:.2f} GB {write:.2f} s = "
          f"{one['bytes_written'] / 1e9 / write:.2f} GB/s; "
          f"reading {one['bytes_read'] / 1e9:.2f} GB of repository {read:.2f} s = "
          f"{one['bytes_read'] / 1e9 / read:.2f} GB/s ({one['read_by']})")


def print_target(figures):
    print("-- the target device (fio): " + "; ".join(
        f"{name} {value:.2f} GB/s" for name, value in figures.items()))


def plot(report, directory, name):
    """A bar a tool and story: the copy below, recovery to the first query above; a dot a round."""
    bars, dots = [], []
    for store, result in report["stores"].items():
        for story, cases in result["stories"].items():
            for key, case in cases.items():
                if not isinstance(case, dict):
                    continue
                label = f"{key.replace(', ', chr(92) + 'n')}{chr(92)}n{store}, {story}"
                copy = case["copy"]["s"]["median"]
                bars.append(f'"{label}" {copy} {case["first_query"]["s"]["median"] - copy}')
                dots += [f'{len(bars) - 1} {x["copy"]["s"]} {x["first_query"]["s"]}'
                         for x in case["rounds"]]
    script = f"""set terminal svg size {160 + 150 * len(bars)},520 background "white" font "sans,11"
set output "{name}.svg"
set title "{report['title']}"
set ylabel "seconds"
set yrange [0:*]
set style data histograms
set style histogram rowstacked
set style fill solid 0.8 border -1
set boxwidth 0.6
set grid ytics
set key top left
$bars << EOD
{chr(10).join(bars)}
EOD
$dots << EOD
{chr(10).join(dots)}
EOD
plot $bars using 2:xtic(1) title "copy" linecolor rgb "#4477aa", \\
     "" using 3 title "recovery to the first query" linecolor rgb "#ddcc77", \\
     $dots using 1:2 with points pointtype 7 pointsize 0.4 linecolor rgb "black" \\
     title "each round", \\
     "" using 1:3 with points pointtype 7 pointsize 0.4 linecolor rgb "black" notitle
"""
    subprocess.run(["gnuplot"], input=script, text=True, check=True, cwd=directory)


def write(report, directory, name):
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, name)
    with open(path + ".json", "w", encoding="utf-8") as file:
        json.dump(report, file, indent=1)
        file.write("\n")
    plot(report, directory, name)
    print(f"\nwritten: {os.path.relpath(path)}.json and .svg")
