//! The listing of the CCDB side as a page, in a real browser: light, dark, narrow, by keyboard.

use super::browser::Browser;
use super::common::{self, Service};
use super::{DAY, HOUR, ODD, check_accessibility, fill, keep, paths};

/// Metadata that would be markup, and a value that does not fit into a narrow window.
fn put_odd(repository: &str, file: &str) {
    let (from, until) = (DAY.to_string(), (DAY + HOUR).to_string());
    let long = format!("responsible={}", "a.long.name.".repeat(12));
    let odd = format!("odd={ODD}");
    let told = common::run_well(&[
        "put",
        "--repository",
        repository,
        "GLO/Config/GRPECS",
        file,
        "--from",
        &from,
        "--until",
        &until,
        "--meta",
        &long,
        "--meta",
        &odd,
    ]);
    drop(told);
}

/// Elements that reach beyond the window.
const BEYOND: &str = "return [...document.querySelectorAll('td, th, li, h1, a')]\
    .filter((one) => one.getBoundingClientRect().right > window.innerWidth + 1)\
    .map((one) => one.outerHTML.slice(0, 80))";

#[test]
fn a_listing_is_a_page_for_people_in_every_window() {
    let Some(browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repository");
    std::fs::create_dir(&repository).unwrap();
    fill(&repository);
    put_odd(repository.to_str().unwrap(), folder.path().join("0.bin").to_str().unwrap());
    let source = format!("file://{}", repository.display());
    let service = Service::start(&["--source", &source, "--ccdb", "127.0.0.1:0"]);
    let url = service.ready["ccdb"].as_str().unwrap().to_owned();
    for scheme in ["light", "dark"] {
        browser.prefer("prefers-color-scheme", scheme);
        for width in [1_240, 360] {
            browser.resize(width, 900);
            for (name, target) in [
                ("folders", "/browse/TPC/Calib"),
                ("versions", "/browse/GLO/Config/GRPECS"),
                ("latest", "/latest/.*"),
                ("empty", "/browse/No/Such"),
            ] {
                browser.open(&format!("{url}{target}"));
                let name = format!("browse-{name}-{scheme}-{width}");
                keep(&browser, &name);
                check_accessibility(&browser, &name);
                let fits = "return document.documentElement.scrollWidth <= window.innerWidth";
                assert_eq!(browser.run(fits), true, "{name}");
                if width == 360 {
                    assert_eq!(browser.run(BEYOND), serde_json::json!([]), "{name}");
                }
            }
        }
    }
    browser.resize(1_240, 900);
    browser.open(&format!("{url}/browse/GLO/Config/GRPECS"));
    assert!(browser.text("table").contains(ODD) && browser.text("time").ends_with('Z'));
    assert_eq!(browser.run("return document.querySelectorAll('img, script').length"), 0);
    assert!(browser.run("return document.querySelectorAll('svg rect').length").as_u64() >= Some(2));

    // By keyboard alone: each element that can be used gets the focus in order, and shows it.
    let mut seen = Vec::new();
    for _ in 0..40 {
        browser.press("\u{e004}");
        let focus = "const one = document.activeElement;\
            return [one.tagName, one.textContent.trim(), getComputedStyle(one).outlineStyle,\
                one.getBoundingClientRect().left >= 0]";
        let focus = browser.run(focus);
        if focus[0] == "BODY" {
            break;
        }
        assert_eq!((&focus[2], &focus[3]), (&"solid".into(), &true.into()), "{focus}");
        seen.push(focus[1].as_str().unwrap().to_owned());
    }
    for text in ["to the versions", "all", "GLO", "Config", "more", "JSON", "XML", "text"] {
        assert!(seen.iter().any(|one| one == text), "{text} in {seen:?}");
    }
    browser.keys("summary", "\u{e007}");
    assert_eq!(browser.run("return document.querySelector('details').open"), true);
    assert_eq!(browser.complaints(), Vec::<String>::new());

    // From the folders down to a version.
    browser.open(&format!("{url}/browse/"));
    let first = paths()[0].split('/').next().unwrap().to_owned();
    browser.run(&format!(
        "[...document.querySelectorAll('.folders a')].find((one) => one.textContent === '{first}')\
            .click()"
    ));
    common::until("the folder", || (browser.text("h1") == first).then_some(()));
}
