//! The status page: in a real browser, of a real service under load; and the guarantees of
//! `/events`.
//!
//! `IOVCACHE_PICTURES=docs/pictures` saves screenshots there. `IOVCACHE_AXE=axe.min.js` (of axe-core)
//! also checks accessibility, at each width and in both colour schemes.
#![cfg(feature = "cli")]

#[path = "../common/mod.rs"]
mod common;

mod browser;
mod listing;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use browser::Browser;
use common::{PATIENCE, Service, http_get, until};
use iovcache::ObjectPath;
use iovcache::client::{Client, TableRequest};
use iovcache::table::ColumnRequest;
use iovcache::time_text;
use serde_json::Value;

/// Midnight of a day in November 2024.
const DAY: i64 = 1_731_024_000_000;
const HOUR: i64 = 3_600_000;
/// A name that would be markup if it were not set as text.
const ODD: &str = "<img src=x onerror=alert(1)>";

fn paths() -> Vec<String> {
    let parts = [
        ("TPC/Calib", &["VDriftTgl", "GainMap", "TimeGain", "IDCZERO", "PadNoise"][..]),
        ("ITS/Calib", &["DeadMap", "NoiseMap", "ClusterDictionary"]),
        ("TOF/Calib", &["ChannelCalib", "LHCphase", "Diagnostic"]),
        ("GLO/Config", &["GRPECS", "GRPMagField", "GRPLHCIF", "Geometry"]),
        ("MCH/Calib", &["BadChannel", "HV"]),
    ];
    let all = parts
        .iter()
        .flat_map(|(detector, names)| names.iter().map(move |name| format!("{detector}/{name}")));
    all.collect()
}

/// Versions of one day: on some paths a new one every hour, on others one for the whole day.
fn fill(repository: &Path) {
    let manifest = repository.with_extension("csv");
    let mut text =
        String::from("path,valid_from_ms,valid_until_ms,created_ms,id,file,size,md5,note\n");
    for (index, path) in paths().iter().enumerate() {
        let size = 3_000 << (index * 5 % 9);
        let name = format!("{index}.bin");
        std::fs::write(repository.with_file_name(&name), vec![index as u8; size]).unwrap();
        let length = [2, 3, 24, 5][index % 4] * HOUR;
        let offset = (index as i64 % 3) * HOUR / 2;
        let mut from = DAY + offset - length;
        while from < DAY + 24 * HOUR {
            let until = from + length;
            text += &format!("{path},{from},{until},{from},,{name},{size},,\n");
            from = until;
        }
    }
    std::fs::write(&manifest, text).unwrap();
    let told = common::run_well(&[
        "import",
        "--repository",
        repository.to_str().unwrap(),
        manifest.to_str().unwrap(),
    ]);
    drop(told);
}

fn columns(paths: &[String]) -> Vec<ColumnRequest> {
    let column =
        |path: &String| ColumnRequest::new(path.replace('/', "_"), ObjectPath::new(path).unwrap());
    paths.iter().map(column).collect()
}

fn table(paths: &[String], at: i64) -> TableRequest {
    let request = TableRequest::new().timestamps([at, at + 1]);
    paths.iter().fold(request, |request, path| request.column(path.replace('/', "_"), path))
}

/// Consumers that hold tables, timeframes in all states, a source that is down, and requests that
/// continue until it is dropped.
struct Load {
    service: Service,
    _held: Vec<iovcache::client::Table>,
    going: tokio::task::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.going.abort();
    }
}

async fn load() -> Load {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repository");
    std::fs::create_dir(&repository).unwrap();
    fill(&repository);
    let source = format!("file://{}", repository.display());
    let down = "http://127.0.0.1:9#DCS";
    let arguments = ["--source", &source, "--source", down, "--refresh", "1s"];
    let service = Service::start_sized("16MiB", "4MiB", &arguments);
    let client = Client::connect(&service.unix()).await.unwrap();
    let all = paths();
    // The dead source is recognised once it was queried.
    let lost = client.table(table(&["DCS/Config".to_owned()], DAY).wait(Duration::from_secs(2)));
    assert!(lost.await.is_err());
    let consumers = ["tracker".to_owned(), "quality-control".to_owned()];
    for timeframe in 0..6 {
        let at = DAY + 8 * HOUR + 600_000 * timeframe;
        let times = (0..100).map(|step| Some(at + step)).collect();
        let wanted = &columns(&all[..9 + timeframe as usize]);
        client.put_timeframe(1_000 + timeframe as u64, times, wanted, &consumers).await.unwrap();
    }
    let mut held = Vec::new();
    for (timeframe, consumer) in [(1_000, 0), (1_000, 1), (1_001, 0), (1_002, 0), (1_001, 1)] {
        let request = TableRequest::new().timeframe(timeframe).consumer(&consumers[consumer]);
        held.push(client.table(request).await.unwrap());
    }
    client.consumed(1_000, "tracker").await.unwrap();
    held.push(client.table(table(&all[10..13], DAY + 10 * HOUR)).await.unwrap());
    let going = tokio::spawn(async move {
        for step in 0.. {
            let at = DAY + step / 20 % 24 * HOUR + HOUR / 2;
            let asked = client.table(table(&all, at)).await;
            drop(asked);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    Load { service, _held: held, going, _folder: folder }
}

/// Saves a screenshot, if a folder is set.
fn keep(browser: &Browser, name: &str) {
    let png = browser.snapshot();
    assert!(png.starts_with(b"\x89PNG") && png.len() > 10_000, "{name}: {} bytes", png.len());
    if let Some(folder) = std::env::var_os("IOVCACHE_PICTURES") {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(Path::new(&folder).join(name).with_extension("png"), png).unwrap();
    }
}

/// Violations that axe-core finds in the page as it is displayed, if its file is set.
fn check_accessibility(browser: &Browser, name: &str) {
    let Some(file) = std::env::var_os("IOVCACHE_AXE") else { return };
    browser.run(&std::fs::read_to_string(file).unwrap());
    let found = "return axe.run().then((result) => result.violations.map((one) =>\
        `${one.id}: ${one.nodes.map((node) => node.target).join(', ')}`))";
    assert_eq!(browser.run(found), serde_json::json!([]), "{name}");
}

/// Waits until `more` further frames have arrived.
fn frames(browser: &Browser, more: u64) {
    let count = || {
        let count = browser.run("return document.body.dataset.frames ?? '0'");
        count.as_str().unwrap().parse::<u64>().unwrap()
    };
    let wanted = count() + more;
    until("pictures", || (count() >= wanted).then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_a_service_at_work_in_a_real_browser() {
    let Some(browser) = Browser::start() else { return };
    let load = load().await;
    let url = format!("http://{}/", load.service.http());
    browser.prefer("prefers-color-scheme", "light");
    browser.resize(1_240, 2_000);
    browser.open(&url);
    frames(&browser, if std::env::var_os("IOVCACHE_PICTURES").is_some() { 45 } else { 4 });

    // The displayed texts.
    assert_eq!(browser.text("#link"), "live");
    assert_eq!(browser.text("#paths-count"), format!("{} paths", paths().len() + 1));
    assert_eq!(browser.run("return timeline.paths[0].path"), "DCS/Config");
    let pinned = "return timeline.paths.flatMap((path) => path.spans)\
        .filter((span) => span.state === 'pinned').length";
    assert!(browser.run(pinned).as_u64().unwrap() >= 10);
    assert!(
        browser.text("#timeframes").contains("1005")
            && !browser.text("#timeframes").contains("999")
    );
    assert!(browser.text("#timeframes").contains("tracker: consumed"));
    assert!(browser.text("#timeframes").contains("quality-control: waiting"));
    let down = browser.run("return document.querySelectorAll('#sources .chip.down').length");
    assert_eq!(down, 1, "{}", browser.text("#sources"));
    assert!(browser.text("#holders").contains("pinned by tracker"));
    // The questions in an incident, answered in the first section.
    let attention = browser.text("#attention");
    assert!(attention.contains("source down") && attention.contains("127.0.0.1:9"), "{attention}");
    // Since when is the service's own time, not that of this browser.
    let status = common::run_well(&["status", "--json", "--server", &load.service.unix()]);
    let status: Value = serde_json::from_str(&status).unwrap();
    let sources = status["sources"].as_array().unwrap();
    let down = sources.iter().find(|source| source["state"] == "down").unwrap();
    let since = time_text::show(down["down_since_ms"].as_i64().unwrap());
    let since = format!("since {} UTC", since[..19].replace('T', " "));
    assert!(attention.contains(&format!("so far. {since}")), "{since}: {attention}");
    let shown = common::run_well(&["status", "--server", &load.service.unix()]);
    assert!(shown.contains("failed), down since 20"), "{shown}");
    // Above the fold of a usual screen.
    let bottom = "return document.getElementById('facts').getBoundingClientRect().bottom";
    assert!(browser.run(bottom).as_f64().unwrap() < 700.0);
    // While the client of this test reads a table it holds more than the tracker.
    let facts = until("a frame between two tables of the test", || {
        let facts = browser.text("#facts");
        facts.contains("tracker").then_some(facts)
    });
    assert!(facts.contains("most memory pinned by"), "{facts}");
    assert!(facts.contains("oldest timeframe") && facts.contains("1000"), "{facts}");
    assert!(browser.text("#segments-count").contains("segments, "));
    let tables = "return Number(document.querySelector('[data-rate=tables] .value').textContent)";
    assert!(browser.run(tables).as_f64().unwrap() > 1.0, "{}", browser.text("#rates"));
    // The canvas is drawn, in the colours of the legend.
    let drawn = "const canvas = document.querySelector('.segment canvas');\
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;\
        const seen = new Set();\
        for (let at = 0; at < data.length; at += 4) seen.add(`${data[at]} ${data[at + 1]} ${data[at + 2]}`);\
        return seen.size";
    assert!(browser.run(drawn).as_u64().unwrap() >= 4);
    keep(&browser, "status-light");
    check_accessibility(&browser, "light");

    // By keyboard alone.
    browser.keys("#timeline", "\u{e015}\u{e015}\u{e015}\u{e014}");
    let chosen = browser.text("#timeline-readout");
    assert!(chosen.starts_with("GLO/Config/GRPLHCIF: 2024-11-"), "{chosen}");
    browser.keys("#timeline", "++");
    assert!(browser.run("return timeline.view[1] - timeline.view[0]").as_f64().unwrap() > 0.0);
    browser.keys("#timeline", "0");
    assert!(browser.run("return timeline.view").is_null());
    browser.keys(".segment canvas", "\u{e014}\u{e014}");
    let block = browser.text("#segments-readout");
    assert!(block.contains("segment 0, at ") && block.contains("/Calib/"), "{block}");

    // In dark mode, in a narrow window, and without motion.
    let paper = "return getComputedStyle(document.documentElement).backgroundColor";
    let light = browser.run(paper);
    browser.prefer("prefers-color-scheme", "dark");
    assert_ne!(browser.run(paper), light);
    frames(&browser, 1);
    keep(&browser, "status-dark");
    check_accessibility(&browser, "dark");
    browser.prefer("prefers-color-scheme", "light");
    browser.resize(360, 1_500);
    frames(&browser, 1);
    let fits = "return document.documentElement.scrollWidth <= window.innerWidth";
    assert_eq!(browser.run(fits), true);
    assert!(browser.run(bottom).as_f64().unwrap() < 1_000.0, "narrow");
    let clipped = "const frame = document.querySelector('#timeframes').closest('.scroll');\
        return frame.scrollWidth - frame.clientWidth";
    assert_eq!(browser.run(clipped), 0, "the consumers of a timeframe are clipped");
    keep(&browser, "status-narrow");
    check_accessibility(&browser, "narrow");
    browser.prefer("prefers-color-scheme", "dark");
    frames(&browser, 1);
    assert_ne!(browser.run(paper), light);
    keep(&browser, "status-narrow-dark");
    check_accessibility(&browser, "narrow and dark");
    browser.prefer("prefers-reduced-motion", "reduce");
    let motion =
        "return getComputedStyle(document.getElementById('link'), '::before').animationName";
    assert_eq!(browser.run(motion), "none");

    // Names given by users are displayed as text.
    let odd = [ODD.to_owned()];
    let client = Client::connect(&load.service.unix()).await.unwrap();
    let times = vec![Some(DAY)];
    client.put_timeframe(2_000, times, &columns(&paths()[..1]), &odd).await.unwrap();
    until("the timeframe", || browser.text("#timeframes").contains(ODD).then_some(()));
    assert_eq!(browser.run("return document.querySelectorAll('img').length"), 0);

    // No resource came from another host, and no request was forbidden or failed.
    let elsewhere = "return performance.getEntriesByType('resource').map((entry) => entry.name)\
        .filter((name) => !name.startsWith(location.origin) && !name.startsWith('data:')).length";
    assert_eq!(browser.run(elsewhere), 0);
    assert_eq!(browser.complaints(), Vec::<String>::new());

    // The page shows that the service is gone.
    drop(load);
    until("the loss", || (browser.text("#link") != "live").then_some(()));
}

#[test]
fn the_page_says_that_a_configuration_was_refused_and_which_keys_need_a_restart() {
    let Some(browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("iovcache.toml");
    let text = "[[source]]\nurl = \"memory:\"\n";
    std::fs::write(&file, text).unwrap();
    let service = Service::start(&["--config", file.to_str().unwrap()]);
    browser.open(&format!("http://{}/", service.http()));
    frames(&browser, 1);
    assert!(browser.text("#attention").contains("No condition"));
    let shows = |text: &str| {
        until(text, || browser.text("#attention").contains(text).then_some(()));
    };
    std::fs::write(&file, "memroy = 1").unwrap();
    service.signal("HUP");
    shows("was refused, see the log; the earlier one is in force.");
    std::fs::write(&file, format!("max_timeframes = 7\n{text}")).unwrap();
    service.signal("HUP");
    shows("take effect after a restart: max_timeframes.");
    std::fs::write(&file, text).unwrap();
    service.signal("HUP");
    shows("No condition");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// A listener: the status line's code, then event by event.
fn listen(address: &str) -> (u16, impl Iterator<Item = (String, Value)>) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET /events HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let mut name = String::new();
    let events = lines.filter_map(move |line| {
        if let Some(event) = line.strip_prefix("event: ") {
            name = event.to_owned();
        }
        let data = line.strip_prefix("data: ")?;
        Some((std::mem::take(&mut name), serde_json::from_str(data).unwrap()))
    });
    (status, events)
}

#[test]
fn listeners_are_bounded_and_without_one_nothing_is_drawn() {
    let service = Service::start(&["--source", "memory:"]);
    let address = service.http();
    let samples = |event: (String, Value)| {
        assert_eq!(event.0, "history");
        event.1.as_array().unwrap().clone()
    };
    let (status, mut first) = listen(&address);
    assert_eq!((status, samples(first.next().unwrap()).len()), (200, 0));
    for _ in 0..2 {
        let (name, event) = first.next().unwrap();
        assert_eq!(
            (name.as_str(), &event["snapshot"]["memory"]["used_bytes"]),
            ("", &Value::from(0))
        );
    }
    // Many listeners get the same frames, which are drawn once.
    let others: Vec<_> = (0..15).map(|_| listen(&address)).collect();
    assert!(others.iter().all(|(status, _)| *status == 200));
    assert_eq!(listen(&address).0, 503);
    drop((first, others));
    // A place is free again when the service has noticed the disconnect, at its next frame.
    let (mut again, drawn) = until("a place", || {
        let (status, mut events) = listen(&address);
        (status == 200).then(|| {
            let drawn = samples(events.next().unwrap());
            (events, drawn)
        })
    });
    let at = |sample: &Value| sample["at"].as_u64().unwrap();
    assert!(drawn.windows(2).all(|two| at(&two[1]) - at(&two[0]) >= 800), "{drawn:?}");
    again.next().unwrap();
    drop(again);
    std::thread::sleep(Duration::from_millis(1_500));
    let before = samples(listen(&address).1.next().unwrap()).len();
    std::thread::sleep(Duration::from_millis(3_000));
    let after = samples(listen(&address).1.next().unwrap()).len();
    // Each of the two listeners may have caused one sample, and the time between them none.
    assert!(after - before <= 1, "{before} {after}");
}

#[test]
fn the_page_may_do_nothing_but_ask_its_own_service() {
    let service = Arc::new(Service::start(&["--source", "memory:"]));
    let mut stream = TcpStream::connect(service.http()).unwrap();
    write!(stream, "HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let head: Vec<String> = BufReader::new(stream).lines().map_while(Result::ok).collect();
    let head = head.join("\n").to_lowercase();
    for header in [
        "content-security-policy: default-src 'none'; script-src 'nonce-",
        "frame-ancestors 'none'",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
    ] {
        assert!(head.contains(header), "{header} in {head}");
    }
    assert!(!head.contains("unsafe-inline"), "{head}");
    let (status, page) = http_get(&service.http(), "/");
    assert!(status == 200 && page.starts_with("<!DOCTYPE html>"));
    assert_eq!(http_get(&service.http(), "/nothing").0, 404);
}
