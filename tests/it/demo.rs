//! The main job: an application writes, a relay carries, and both files are counted.

use outboxd::demo;

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_delivers_every_event_once_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let options = demo::Options { folder: folder.path().join("demo"), events: Some(5_000), quiet: true, rate: 100_000 };
    let summary = demo::run(options).await.unwrap();
    assert_eq!((summary.written, summary.delivered), (5_000, 5_000));
    assert!(summary.is_whole(), "{summary:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_count_sees_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("demo");
    demo::run(demo::Options { folder: path.clone(), events: Some(1_000), quiet: true, rate: 100_000 }).await.unwrap();
    let file = path.join("events.ndjson");
    let lines: Vec<String> = std::fs::read_to_string(&file).unwrap().lines().map(str::to_owned).collect();
    // The orders of the first round are shipped in the second: line 0 and line 200 are of one order.
    let mut doctored = lines.clone();
    doctored.swap(0, 200);
    doctored.remove(5);
    doctored.push(lines[6].clone());
    std::fs::write(&file, doctored.join("\n") + "\n").unwrap();
    let summary = demo::count(&path.join("shop.db"), &file).await.unwrap();
    assert_eq!((summary.missing, summary.repeated, summary.out_of_order), (1, 1, 1), "{summary:?}");
}
