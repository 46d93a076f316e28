"""The page of a run, opened in Chromium: complete, right, safe, readable on a desk, on a phone and in the dark."""

import importlib.util
import json
import os
import re
import shutil
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from trimtab.evaluators.measurement import Measurement
from trimtab.experiments.report.page import render_body, write_report
from trimtab.experiments.report.reading import Stage, read_run
from trimtab.search.journal import Journal
from trimtab.search.record import Record, Status

chromium_spec = importlib.util.spec_from_file_location("chromium", Path(__file__).with_name("chromium.py"))
chromium = importlib.util.module_from_spec(chromium_spec)
chromium_spec.loader.exec_module(chromium)

needs_chromium = pytest.mark.skipif(chromium.CHROMIUM is None, reason=chromium.WHY_NOT)
MARKUP = "<img src=x onerror=document.body.dataset.hacked=1>"
#: marks of all trials, whichever cloud they are in
COUNT_POINTS = "document.querySelectorAll('#plot-{} .scatterlayer path.point').length"


def read_json(path):
    return json.loads(path.read_text())


def read_lines(run):
    return [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()[1:]]


def copy_run(finished, folder):
    return Path(shutil.copytree(finished.path / "runs" / "tiny", folder / "tiny"))


def add_unlucky_trials(run):
    """Appends a trial of every other status."""
    with Journal.open(run / "journal.jsonl") as journal:
        last, n = journal.records[-1], len(journal.records)
        for i, (status, error) in enumerate(
            [(Status.FAILED, "boom 17"), (Status.FAILED, "boom 18"), (Status.INFEASIBLE, "no such rank"),
             (Status.PRUNED, "its latency is worse")]
        ):  # fmt: skip
            measurement = last.measurement if status is Status.PRUNED else Measurement()
            journal.append(Record(n + i, last.policy, status, measurement, 0.5, 0, "random", error))
    os.utime(run / "result.json")  # the search may have ended minutes ago, and a result older than its journal is none
    return n + 4


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    run = copy_run(finished, tmp_path_factory.mktemp("report"))
    add_unlucky_trials(run)
    return run


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(browser, run):
    """The report, opened once."""
    path = write_report(run)
    browser.complaints.clear()
    browser.requests.clear()
    browser.show()
    browser.open(path.as_uri())
    return browser


def cells_of(page, selector):
    text = f"[...document.querySelectorAll('{selector}')].map(row => [...row.cells].map(cell => cell.textContent))"
    return page.evaluate(text)


@needs_chromium
def test_the_page_opens_without_a_complaint_and_asks_for_nothing(page, run):
    assert page.complaints == []
    assert page.requests == [(run / "report.html").as_uri()]


@needs_chromium
def test_every_trial_is_a_point_in_every_view(page, run):
    views = page.evaluate("document.querySelectorAll('[data-for=trade-off] button').length")
    counts = []
    for view in range(views):
        page.evaluate(f"document.querySelectorAll('[data-for=trade-off] button')[{view}].click()")
        counts.append(page.evaluate(COUNT_POINTS.format("trade-off")))
    assert counts == [len(read_lines(run))] * views
    assert views == 2  # latency and size


@needs_chromium
def test_every_figure_is_drawn(page):
    drawn = page.evaluate("[...document.querySelectorAll('.plot')].map(p => [p.id, !!p.querySelector('svg .trace')])")
    assert ["plot-trade-off", True] in drawn
    assert ["plot-progress", True] in drawn
    assert all(is_drawn for _, is_drawn in drawn)


@needs_chromium
def test_the_final_table_has_the_numbers_of_the_result(page, run):
    expected = []
    for row in read_json(run / "result.json")["rows"]:
        final, test = row["final"], row["test"]
        latency = final["latency"]
        expected.append([
            f"{1e3 * latency['median_s']:.3f} ± {1e3 * latency['iqr_s']:.3f}",
            f"{latency['reference_s'] / latency['median_s']:.2f}×",
            f"{100 * final['accuracy']['mean']:.2f} ± {100 * final['accuracy']['standard_error']:.2f}",
            f"{100 * test['accuracy']['mean']:.2f} ± {100 * test['accuracy']['standard_error']:.2f}",
            f"{100 * test['accuracy_drop']['mean']:+.2f} ± {100 * test['accuracy_drop']['standard_error']:.2f}",
            f"{final['size_bytes'] / 1e6:.3f}",
            "kept" if row["feasible"] else "exceeded",
        ])  # fmt: skip
    assert [cells[1:] for cells in cells_of(page, "#result .final tbody tr")] == expected


@needs_chromium
def test_the_winner_is_the_journals(page, run):
    winner = read_json(run / "result.json")["winner"]
    (line,) = [line for line in read_lines(run) if line["id"] == winner]
    (cells,) = cells_of(page, "#all-trials tr.winner")
    assert page.evaluate("document.querySelector('h1').textContent").startswith(f"Policy #{winner} keeps the budget")
    assert cells[0] == f"#{winner}"
    assert cells[3] == f"{line['measurement']['size_bytes'] / 1e6:.3f}"
    assert cells[5] == Record.from_json(line).policy.id


@needs_chromium
def test_failures_stand_together_by_their_error(page, run):
    n = len(read_lines(run))
    rows = {cells[3]: cells[:3] for cells in cells_of(page, "#failures tbody tr")}
    assert rows == {
        "boom 17": ["failed", "2", f"#{n - 4}, #{n - 3}"],
        "no such rank": ["cannot be built", "1", f"#{n - 2}"],
        "its latency is worse": ["stopped early", "1", f"#{n - 1}"],
    }


@needs_chromium
@pytest.mark.parametrize("is_dark", [False, True])
def test_nothing_is_wider_than_a_phone(page, is_dark):
    page.show(width=400, is_dark=is_dark)
    try:
        widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        plots = page.evaluate("[...document.querySelectorAll('.plot svg.main-svg')].map(s => s.clientWidth)")
    finally:
        page.show()
    assert widths == [400, 400]
    assert plots
    assert max(plots) <= 400


@needs_chromium
def test_colours_follow_what_is_preferred_and_the_button(page):
    look = """[getComputedStyle(document.body).backgroundColor,
               document.querySelector('#plot-trade-off .xtick text').style.fill]"""
    light = page.evaluate(look)
    page.show(is_dark=True)
    dark = page.evaluate(look)
    page.evaluate("document.getElementById('theme').click()")
    back = page.evaluate(look)
    page.evaluate("delete document.documentElement.dataset.theme")
    page.show()
    assert light != dark
    assert back == light


@needs_chromium
def test_on_paper_figures_are_as_wide_as_the_paper_and_light(page, tmp_path):
    page.show(is_dark=True)
    page.evaluate("""addEventListener("beforeprint", () => { document.body.dataset.printed = JSON.stringify([
        document.querySelector(".plot svg").clientWidth, getComputedStyle(document.body).backgroundColor]); })""")
    try:
        page.print(tmp_path / "page.pdf")
        assert json.loads(page.evaluate("document.body.dataset.printed")) == [690, "rgb(255, 255, 255)"]
        chromium.wait_for(lambda: page.evaluate("document.querySelector('.plot svg').clientWidth") > 690)
    finally:
        page.show()
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


@needs_chromium
def test_what_is_pointed_at_says_its_numbers(page, run):
    winner = read_json(run / "result.json")["winner"]
    texts = page.evaluate("document.getElementById('plot-trade-off').data.flatMap(trace => trace.hovertext ?? [])")
    (text,) = [text for text in texts if text.startswith(f"<b>#{winner}</b>")]
    assert "±" in text
    assert "keeps the budget" in text


@needs_chromium
def test_every_plot_has_words_for_those_who_do_not_see_it(page):
    labels = page.evaluate("[...document.querySelectorAll('.plot')].map(p => [p.getAttribute('role'), p.ariaLabel])")
    assert all(role == "img" and len(label) > 20 for role, label in labels)


def luminance(color):
    """Relative luminance of ``rgb(…)``; WCAG 2.2."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@needs_chromium
@pytest.mark.parametrize("is_dark", [False, True])
def test_texts_stand_out_from_what_is_behind_them(page, is_dark):
    page.show(is_dark=is_dark)
    names = ["--surface", "--ink", "--muted", "--bad", "--winner", "--searched", "--baseline", "--bound"]
    read = """.map(name => {
        const probe = document.createElement("i"); probe.style.color = `var(${name})`; document.body.append(probe);
        const color = getComputedStyle(probe).color; probe.remove(); return color; })"""
    try:
        surface, *texts = map(luminance, page.evaluate(json.dumps(names) + read))
    finally:
        page.show()
    ratios = [(max(surface, text) + 0.05) / (min(surface, text) + 0.05) for text in texts]
    assert min(ratios) >= 4.5  # level AA


@needs_chromium
def test_what_files_say_is_text_and_nothing_else(browser, finished, tmp_path):
    run = copy_run(finished, tmp_path)
    for name in ("journal.jsonl", "space.json", "result.json"):
        text = (run / name).read_text()
        layer = json.loads((run / "space.json").read_text())["layers"][0][0] if name != "space.json" else None
        first = layer or json.loads(text)["layers"][0][0]
        content = text.replace(json.dumps(first), json.dumps(MARKUP))
        (tmp_path / name).write_text(content)
    for name in ("journal.jsonl", "space.json", "result.json"):
        (tmp_path / name).replace(run / name)
    (run / "policy.json").unlink()
    with Journal.open(run / "journal.jsonl") as journal:
        last = journal.records[-1]
        script = "</script><script>document.body.dataset.hacked=1</script>"
        journal.append(Record(last.id + 1, last.policy, Status.FAILED, Measurement(), 0.1, 0, MARKUP, script))
    browser.complaints.clear()
    browser.open(write_report(run).as_uri())
    assert browser.evaluate("document.body.dataset.hacked") is None
    assert browser.evaluate("document.querySelectorAll('img, main script, iframe').length") == 0
    assert browser.evaluate("document.scripts.length") == 3
    assert browser.evaluate("document.querySelector('.map').textContent").count(MARKUP) == 1
    assert script in browser.evaluate("document.querySelector('.failures').textContent")
    assert browser.complaints == []


def test_a_run_without_its_end_gives_a_page_that_says_so(finished, tmp_path):
    run = copy_run(finished, tmp_path)
    for name in ("result.json", "policy.json", "pareto.json", "prices.json"):
        (run / name).unlink()
    shutil.rmtree(run / "artifact")
    with (run / "journal.jsonl").open("ab") as file:
        file.write(b'{"id": 99, "pol')
    html = write_report(run, tmp_path / "page.html").read_text()
    reading = read_run(run)
    assert reading.stage is Stage.STOPPED
    assert "A partial report: the search has not ended." in html
    assert "Best so far is policy #" in html
    assert len(reading.records) == len(read_lines_until_torn(run))


def read_lines_until_torn(run):
    return [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()[1:-1]]


def test_a_search_that_has_only_begun_has_a_page(finished, tmp_path):
    run = tmp_path / "tiny"
    run.mkdir()
    shutil.copy(finished.path / "runs" / "tiny" / "spec.yaml", run)
    assert read_run(run).stage is Stage.PREPARING
    assert "Nothing measured yet" in write_report(run).read_text()


def test_a_budget_that_nothing_keeps_is_answered_with_the_nearest(finished, tmp_path):
    run = copy_run(finished, tmp_path)
    spec = yaml.safe_load((run / "spec.yaml").read_text())
    spec["budget"] = {"latency": "0.01x", "accuracy_drop": 0.2}
    (run / "spec.yaml").write_text(yaml.safe_dump(spec))
    result = read_json(run / "result.json")
    rows = [{**row, "feasible": False} for row in result["rows"] if row["label"] != "best policy"]
    (run / "result.json").write_text(json.dumps({**result, "rows": rows, "winner": None}))
    (run / "policy.json").unlink()
    html = render_body(read_run(run)).html
    fastest = min(line["measurement"]["latency"]["median_s"] for line in read_lines(run))
    assert "No policy keeps the budget" in html
    assert f"It would be kept with latency {1e3 * fastest:.4g} ms" in html


def test_a_damaged_run_is_refused_in_words(workplace, finished, tmp_path):
    run = copy_run(finished, tmp_path)
    (run / "result.json").write_text('{"rows": [{"trial": 1}]}')
    ended = workplace.call("report", run)
    assert (ended.exit_code, ended.bug) == (2, None)
    assert "result.json is damaged" in ended.stderr


def test_the_command_says_where_the_page_is(workplace, finished, tmp_path):
    run = copy_run(finished, tmp_path)
    ended = workplace.call("report", run, "--out", tmp_path / "mine.html")
    assert ended.exit_code == 0, ended.stderr
    assert f"report: {tmp_path / 'mine.html'}" in ended.stdout
    assert not (run / "report.html").exists()


@pytest.fixture(scope="module")
def watched(finished, tmp_path_factory):
    """A run without its result, and the address of its live page."""
    run = copy_run(finished, tmp_path_factory.mktemp("watched"))
    (run / "result.json").rename(run.parent / "result.json")
    process = finished.start("watch", run, "--no-browser")
    try:
        yield run, re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0]
    finally:
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=30)[1]
        assert process.returncode == 0, stderr


@needs_chromium
def test_the_live_page_grows_with_the_journal_and_says_when_the_search_is_over(browser, watched):
    run, address = watched
    with Journal.open(run / "journal.jsonl") as journal:
        browser.complaints.clear()
        browser.requests.clear()
        browser.open(address)
        n = len(journal.records)
        browser.evaluate("document.getElementById('all-trials').open = true")
        assert browser.evaluate("document.querySelector('.stage').textContent") == "searching"
        assert browser.evaluate(COUNT_POINTS.format("trade-off")) == n
        last = journal.records[-1]
        journal.append(Record(last.id + 1, last.policy, Status.COMPLETE, last.measurement, 1.0, 0, "random"))
        chromium.wait_for(lambda: browser.evaluate(COUNT_POINTS.format("trade-off")) == n + 1)
        assert browser.evaluate("document.getElementById('all-trials').open")
        journal.append(Record(last.id + 2, last.policy, Status.FAILED, Measurement(), 1.0, 0, "random", "boom"))
        chromium.wait_for(lambda: "boom" in browser.evaluate("document.getElementById('failures').textContent"))
    said = "document.getElementById('live').textContent"
    chromium.wait_for(lambda: browser.evaluate(said) == "search has stopped")
    (run.parent / "result.json").rename(run / "result.json")
    os.utime(run / "result.json")
    chromium.wait_for(lambda: browser.evaluate(said) == "search has ended")
    winner = read_json(run / "result.json")["winner"]
    assert browser.evaluate("document.querySelector('h1').textContent").startswith(f"Policy #{winner} keeps")
    assert browser.complaints == []
    assert {url.removeprefix(address) for url in browser.requests} == {"", "state.json"}


def ask(address, *, method="GET", **headers):
    request = urllib.request.Request(address, method=method, headers=headers)  # noqa: S310 - this machine
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def test_the_server_answers_this_machine_only_and_changes_nothing(watched):
    _, address = watched
    status, headers, body = ask(f"{address}state.json")
    assert status == 200
    assert json.loads(body)["stage"] in ("stopped", "ended")
    assert ask(f"{address}state.json", **{"If-None-Match": headers["ETag"]})[0] == 304
    assert ask(f"{address}state.json", Host="evil.example")[0] == 400
    assert ask(address, Host="evil.example:80")[0] == 400
    assert ask(address, method="POST")[0] == 405
    assert ask(f"{address}../spec.yaml")[0] == 404
    assert "script-src 'sha256-" in headers["Content-Security-Policy"]


def test_a_port_that_is_taken_is_refused(workplace, watched):
    run, address = watched
    ended = workplace.call("watch", run, "--port", address.rstrip("/").rpartition(":")[2], "--no-browser")
    assert (ended.exit_code, ended.bug) == (2, None)
    assert "choose another with --port" in ended.stderr
