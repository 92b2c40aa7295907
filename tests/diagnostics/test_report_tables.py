"""Tables for other documents: LaTeX that is well formed, Markdown with its columns, CSV with report.json's numbers."""

import csv
import io
import json
import re
from collections import Counter

import pytest
from rich.table import Table

from diagnostics import cli, report_tables
from diagnostics.folder import as_json, read_report
from diagnostics.report import build
from diagnostics.report_tables import Shown, as_csv, latex, latex_table, markdown_table, records, shown
from diagnostics.sections.table import serving
from diagnostics.settings import Settings
from diagnostics.subject import Subject
from diagnostics.work.cache import Cache
from diagnostics.workspace import Workspace
from merging import merge
from merging.plain import to_plain
from merging.suites import toy

ODD = "a&b%c_$#{x}~^\\ <y>|*`[z] \"q\", 'é' naïve 任务"
SMALL = Settings(held_out=8, kernel=4, train=8, draws=2, weight_draws=1, points=3, resamples=4)


def reported(*methods, names=("task0", "task1", ODD)):
    suite = toy.build()
    vectors = type(suite.task_vectors).from_stacked(suite.task_vectors.base, suite.task_vectors.stacked, names)
    tasks = [type(t)(**{**vars(t), "name": n}) for t, n in zip(suite.tasks, names, strict=True)]
    whole = type(suite)(**{**vars(suite), "task_vectors": vectors, "tasks": tasks})
    subjects = [
        Subject(m, f"{m}.pt", merge(m, vectors, tasks, suite="toy", sources=suite.sources, **settings))
        for m, settings in methods
    ]
    return build(Workspace(subjects, lambda: whole, SMALL, Cache(None)))


@pytest.fixture(scope="module")
def two():
    return reported(("average", {}), ("samerging", {"steps": 2, "examples": 8}))


@pytest.fixture(scope="module")
def one():
    return reported(("average", {}))


def leaves(value):
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner)]
    return [value]


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def as_text(value):
    return "" if value is None else str(value)


def test_csv_holds_every_value_of_report_json_once(two):
    content, texts = json.loads(as_json(two)), as_csv(two, list(serving("example")))
    for name in serving("example"):
        tables = [text for table, text in texts.items() if table.split(".")[0] == name]
        got = Counter(
            value
            for text in tables
            for line in read(text)
            for column, value in line.items()
            if column != "merge" and not column.endswith(" #") and value
        )
        made = Counter(as_text(leaf) for merge in content["merges"] for leaf in leaves(merge[name]))
        made.pop("", None)
        assert got == made, name


def test_csv_is_a_table_of_numbers_where_a_reader_looks_for_them(two):
    texts = as_csv(two, ["accuracy", "bound"])
    rows = read(texts["accuracy.tasks"])
    assert [(row["merge"], row["name"]) for row in rows] == [
        (made.label, task.name) for made in two.merges for task in made.accuracy.tasks
    ]
    for row, task in zip(rows, (t for made in two.merges for t in made.accuracy.tasks), strict=True):
        assert row["tasks #"] == task.name
        assert int(row["test_examples"]) == task.test_examples
        for model, value in task.accuracy.items():
            assert float(row[f"accuracy.{model}"]) == value
    (whole, _) = read(texts["accuracy"])
    assert float(whole["risk.value"]) == two.merges[0].accuracy.risk.value
    terms = read(texts["bound.readings.terms"])
    wanted = two.merges[1].bound.readings[2].terms[1]
    found = [row for row in terms if row["merge"] == "samerging" and row["name"] == wanted.name]
    assert float(found[2]["estimate.value"]) == wanted.estimate.value
    assert {row["readings #"] for row in terms} == {reading.name for reading in two.merges[0].bound.readings}


def test_csv_of_the_comparison_and_of_chosen_sections(two, one):
    assert list(as_csv(one, ["accuracy"])) == ["accuracy", "accuracy.tasks"]
    rows = read(as_csv(two, ["accuracy"])["comparison.differences"])
    assert [float(row["difference.value"]) for row in rows] == [d.difference.value for d in two.comparison.differences]


def test_records_of_lists_of_any_depth():
    found = {}
    record = {"a": 1, "m": [[1, 2], [3]], "deep": {"x": None, "l": ["p", "q"]}, "of": [{"name": "n", "v": [{"w": 2}]}]}
    report_tables._collect(found, "t", {"merge": "x"}, record)
    assert found == {
        "t": [{"merge": "x", "a": 1, "deep.x": None, "deep.l.1": "p", "deep.l.2": "q"}],
        "t.m": [{"merge": "x", "m #": 1, "1": 1, "2": 2}, {"merge": "x", "m #": 2, "1": 3}],
        "t.of": [{"merge": "x", "of #": "n", "name": "n"}],
        "t.of.v": [{"merge": "x", "of #": "n", "v #": 1, "w": 2}],
    }


def cut(text, sign):
    """Split at a sign that is not escaped."""
    return re.split(rf"(?<!\\){sign}", text)


def check_latex(text):
    """Check what a compiler would: environments, braces, mathematics and the columns of every row; return the rows."""
    open_environments = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            open_environments.append(name)
        else:
            assert open_environments.pop() == name
    assert open_environments == []
    depth = 0
    for sign in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if sign == "{" else -1
        assert depth >= 0
    assert depth == 0
    (columns,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", text)
    body = text.split("\\hline\n", 1)[1].split("\\end{tabular}")[0]
    rows = [line for line in body.splitlines() if line != "\\hline"]
    for row in rows:
        assert row.endswith(" \\\\")
        assert len(cut(row, "&")) == len(columns), row
    assert all(len(cut(line, r"\$")) % 2 == 1 for line in text.splitlines()), "mathematics that does not end"
    outside = "".join(part for line in text.splitlines() for part in cut(line, r"\$")[::2])
    assert not re.search(r"(?<!\\)[#%~^_]", outside)
    return rows


def test_latex_is_well_formed_and_has_every_row(two):
    tables = shown(two, list(serving("example")))
    texts = report_tables.as_latex(two, list(serving("example")))
    assert list(texts) == list(tables)
    assert "accuracy-1" in texts
    assert "accuracy-2" in texts
    assert "comparison" in texts
    for name, text in texts.items():
        rows = check_latex(text)
        assert len(rows) == 1 + len(tables[name].rows)
        for row, cells in zip(rows[1:], tables[name].rows, strict=True):
            assert [cell.strip() for cell in cut(row.removesuffix("\\\\"), "&")] == [latex(c).strip() for c in cells]
        signs = {c for c in text if not c.isascii()}
        assert signs <= set("éï任务"), f"{name}: {signs} need packages"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a & b", "a \\& b"),
        ("50 %", "50 \\%"),
        ("a_b", "a\\_b"),
        ("#1", "\\#1"),
        ("~", "\\textasciitilde{}"),
        ("x^2", "x\\textasciicircum{}2"),
        ("\\x", "\\textbackslash{}x"),
        ("$x$ {y}", "\\$x\\$ \\{y\\}"),
        ("<a|b>", "$<$a$|$b$>$"),
        ("θ_0 + s·d", "$\\theta_{0}$ + s$\\cdot$d"),
        ("N(λ̂, 0.01² I)", "N($\\hat{\\lambda}$, 0.01${}^{2}$ I)"),
        ("‖∇L̂‖", "$\\|\\nabla\\hat{L}\\|$"),
        ("ε⁺ ± 1", "$\\varepsilon{}^{+}$ $\\pm$ 1"),
        ("-1.5 to-3", "$-$1.5 to-3"),
        ("p-1", "p-1"),
        ("$θ", "\\$$\\theta$"),
        ("Σ α_t", "$\\Sigma$ $\\alpha_{t}$"),
        ("Poincaré", "Poincaré"),
        ("任务_x", "任务\\_x"),
        ("Ομικρον", "Ο$\\mu\\iota\\kappa\\rho$ο$\\nu$"),
    ],
)
def test_signs_for_latex(text, wanted):
    assert latex(text) == wanted


def test_a_row_of_odd_names_keeps_its_columns():
    made = Table("task", "what %", title=ODD, caption=ODD)
    made.add_row(ODD, "a\nb")
    made.add_section()
    made.add_row("x", "")
    table = report_tables._texts(made)
    text = latex_table(table)
    assert len(check_latex(text)) == 3
    assert text.count("\\hline") == 4, "around the header, after the section, at the end"
    assert "a b \\\\" in text


class TestChecks:
    """What the structural check must find."""

    @pytest.mark.parametrize("wrong", ["a_b", "a & b", "50 %", "{", "$", "x^2", "#"])
    def test_a_cell_that_is_not_escaped_is_found(self, wrong):
        table = Shown(title="t", caption="", header=("a",), right=(False,), rows=(("cell",),), ends=(False,))
        with pytest.raises(AssertionError):
            check_latex(latex_table(table).replace("cell", wrong))


def check_markdown(text):
    title, blank, *lines = text.splitlines()
    assert title.startswith("### ")
    assert blank == ""
    rows = [line for line in lines if line.startswith("| ")]
    cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]
    assert len({len(row) for row in cells}) == 1
    assert all(cell.strip() in ("---", "---:") for cell in cells[1])
    return cells


def test_markdown_has_every_column_and_row(two):
    tables = shown(two, list(serving("example")))
    texts = report_tables.as_markdown(two, list(serving("example")))
    assert list(texts) == list(tables)
    for name, text in texts.items():
        header, ruler, *rows = check_markdown(text)
        table = tables[name]
        assert len(rows) == len(table.rows)
        assert [cell.strip() == "---:" for cell in ruler] == list(table.right)
        plain = [[re.sub(r"\\(.)", r"\1", cell[1:-1]) for cell in row] for row in (header, *rows)]
        assert plain == [list(table.header), *map(list, table.rows)]
        assert "<y>" not in text.replace("\\<y>", "")


def test_markdown_has_title_and_caption():
    table = Shown(title="a|b", caption="c", header=("x",), right=(True,), rows=(("1",),), ends=(False,))
    assert markdown_table(table) == "### a\\|b\n\n| x |\n| ---: |\n| 1 |\n\nc\n"


@pytest.fixture
def file(one, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.json").write_text(as_json(one), encoding="utf-8")
    return "report.json"


def run(*arguments):
    try:
        return cli.main(["report", "export", *arguments])
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize(("form", "suffix"), [("--latex", "tex"), ("--csv", "csv"), ("--markdown", "md")])
def test_the_command_writes_a_file_per_table_or_all_to_standard_output(form, suffix, file, one, tmp_path, capsys):
    assert run(file, form, "--out", "deep/tables") == 0
    line = capsys.readouterr().out
    files = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "deep" / "tables").iterdir()}
    assert {name.rsplit(".", 1)[1] for name in files} == {suffix}
    assert f"accuracy.{suffix}" in files
    assert all(name in line for name in files)
    assert run(file, form) == 0
    text = capsys.readouterr().out
    assert all(content in text for content in files.values())
    assert len(text) >= sum(map(len, files.values()))
    assert run(file, form, "--sections", "accuracy", "--out", "few") == 0
    assert {path.name.split(".")[0] for path in (tmp_path / "few").iterdir()} == {"accuracy"}
    assert to_plain(read_report(tmp_path / file)) == to_plain(one)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("report.json",), "format: expected one of --latex, --csv and --markdown; got none; choose one"),
        (("report.json", "--csv", "--latex"), "got --latex and --csv"),
        (("none.json", "--csv"), "report none.json"),
        (("report.json", "--csv", "--sections", "acuracy"), "did you mean accuracy?"),
        (("report.json", "--csv", "--out", "report.json"), "--out report.json: expected a folder"),
        (("report.json", "--html"), "options: expected those of mergebound report export --help"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(arguments, line, file, tmp_path, capsys):
    assert run(*arguments) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert line in found.err
    assert found.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_a_damaged_report_is_refused(file, tmp_path, capsys):
    text = (tmp_path / file).read_text(encoding="utf-8").replace("0.05", "0.06", 1)
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert run(file, "--csv") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_records_leave_out_sections_that_were_not_made(one):
    assert not records(one, [])
    assert set(records(one, ["accuracy"])) == {"accuracy", "accuracy.tasks"}
