"""Reports about runs and studies: what is in the page, and what it does in a browser."""

import shutil
import time

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

import subnet_search as ss
from subnet_search.cli import main
from subnet_search.core.errors import UserError
from subnet_search.search.storage.read import Snapshot

pytest.importorskip("plotly")
RECIPE = ss.Recipe(epochs=2, batch_size=50, threads=1, device="cpu")
URL = "sqlite:///s.db"
SPACE = {"extractor.density": FloatDistribution(0.05, 0.5), "extractor": CategoricalDistribution(["snip", "gmp"])}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    ss.extract("lenet5", {"name": "digits", "limit": 200}, "snip", density=0.3, recipe=RECIPE, out=folder, progress=False)
    return folder


def made_study(name="made", count=30):
    """A study of finished trials, every tenth failed, that no worker ran."""
    trials = []
    for number in range(count):
        density = 0.05 + 0.45 * number / count
        params = {"extractor.density": density, "extractor": ("snip", "gmp")[number % 2]}
        failed = number % 10 == 9
        attrs = {"density": density, "seconds": 1.0 + number % 3} | ({"reason": "the loss is not a number"} if failed else {})
        state = TrialState.FAIL if failed else TrialState.COMPLETE
        value = None if failed else 0.9 - (0.3 - density) ** 2
        trials.append(create_trial(state=state, value=value, params=params, distributions=SPACE, user_attrs=attrs))
        trials[-1].number = number
    study = optuna.create_study(study_name=name, storage=URL, direction="maximize")
    return study, trials


def text_of(path):
    return path.read_text().split("<script>", 1)[0]


def test_a_run(finished):
    html = text_of(ss.report(finished, out="r.html"))
    titles = [
        "snip on lenet5",
        "test accuracy",
        "Learning curves",
        "Density by layer",
        "First layer",
        "Configuration",
        "How to reproduce",
    ]
    assert all(title in html for title in titles)
    assert "subnet-search report RUN --evaluate measures them" in html
    measured = text_of(ss.report(finished / "subnetwork.safetensors", evaluate=True, out="e.html"))
    assert "Robustness" in measured


def test_the_page_is_in_the_folder_and_needs_no_network(finished, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", str(finished)])
    assert ended.value.code == 0
    assert capsys.readouterr().err == f"report: {finished}/report.html\n"
    html = (finished / "report.html").read_text()
    assert "<script src=" not in html
    assert "<link" not in html


def test_a_study_and_two_side_by_side(finished):
    study, trials = made_study()
    study.add_trials(trials)
    html = text_of(ss.report(study, out="s.html"))
    titles = [
        "made",
        "Optimisation history",
        "Parallel coordinates",
        "Importance",
        "Slices",
        "the loss is not a number",
        "Time by trial",
    ]
    assert all(title in html for title in titles)
    assert html.count('id="trial-') == 30
    both = text_of(ss.report("made", finished, storage=URL, out="b.html"))
    assert both.count("<main>") == 2


def test_names_are_escaped():
    bad = "<script>alert(1)</script>"
    study = optuna.create_study(study_name=bad, storage=URL)
    study.add_trial(create_trial(value=1.0, params={bad: 1.0}, distributions={bad: FloatDistribution(0, 2)}))
    assert "<script>alert" not in ss.report(study, out="bad.html").read_text()


@pytest.mark.parametrize("count", [0, 1])
def test_a_study_without_a_result(count):
    study = optuna.create_study(study_name="empty", storage=URL)
    for _ in range(count):
        study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"reason": "no memory"}))
    html = text_of(ss.report("empty", storage=URL))
    assert "No trial of this study is complete" in html
    assert ("no memory" in html) == bool(count)


def test_what_is_no_run(finished, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder is no run folder or file"):
        ss.report(tmp_path / "folder")
    with pytest.raises(UserError, match="no such run: runs/none"):
        ss.report("runs/none")
    made_study()
    with pytest.raises(UserError, match="unknown study 'none'"):
        ss.report("none", storage=URL)
    with pytest.raises(UserError, match=r"ends in \.html: got r\.pdf"):
        ss.report(finished, out="r.pdf")
    (tmp_path / "going").mkdir()
    shutil.copy(finished / "config.yaml", "going")
    with pytest.raises(UserError, match="going is a run that is not finished: continue it first"):
        ss.report("going")
    with pytest.raises(ss.RunError):
        ss.report(finished, out="/proc/none/r.html")


# --- in a browser ---


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("selenium.webdriver")
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(paths):
        pytest.skip("needs the Debian packages chromium and chromium-driver")
    options = driver.ChromeOptions()
    options.binary_location = paths[0]
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = driver.Chrome(options=options, service=driver.ChromeService(paths[1]))
    yield found
    found.quit()


@pytest.mark.slow
def test_a_page_of_2000_trials_in_a_browser(browser, tmp_path):
    path = ss.report(Snapshot(*made_study("large", 2000)), out="large.html")
    begun = time.monotonic()
    browser.get(f"file://{tmp_path / path}")
    plots = browser.find_elements("css selector", ".plot .main-svg")
    assert time.monotonic() - begun < 30  # a machine that is busy; measured alone it is under 3 s
    assert len(plots) >= 5
    assert all(plot.size["height"] > 100 and plot.size["width"] > 300 for plot in plots[:5])
    rows = "return [...document.querySelectorAll('tbody')].pop().rows"
    count = browser.execute_script(f"{rows}.length")
    assert count == 2000
    browser.find_element("css selector", "input[type=search]").send_keys("not a number")
    assert browser.execute_script(f"return [...({rows.removeprefix('return ')})].filter(row => !row.hidden).length") == 200
    browser.find_element("css selector", "input[type=search]").clear()
    for _ in range(2):
        browser.find_elements("css selector", "th button")[0].click()
    assert browser.execute_script(f"{rows}[0].cells[0].textContent") == "1999"
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.slow
def test_a_page_on_a_telephone(browser, finished, tmp_path):
    path = ss.report(finished, out="phone.html")
    browser.set_window_size(500, 800)  # the narrowest that Chromium allows
    browser.get(f"file://{tmp_path / path}")
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
