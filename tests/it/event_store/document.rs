//! The example of docs/EVENTS.md for applications in Rust.

use std::time::Duration;

use outboxd::store::event::{Append, Expected, NewEvent};
use outboxd::store::fault::AppendError;
use outboxd::store::{self, EventStore, Options};

async fn place(path: &std::path::Path) -> Result<i64, Box<dyn std::error::Error>> {
    // As the document has it.
    #[rustfmt::skip]
    let example = {
store::init(path).await?;
let store = EventStore::open(path, Options::default()).await?;

let placed = NewEvent::new("OrderPlaced", r#"{"total": 7}"#).with_id("1f0a");
let append = Append::new("order-1", "Order", Expected::NoStream, vec![placed]);
let done = store.append(append, Duration::from_secs(5)).await?;
assert_eq!(done.last_version, 1);

let paid = Append::new("order-1", "Order", Expected::Exact(0), vec![NewEvent::new("OrderPaid", "{}")]);
match store.append(paid, Duration::from_secs(5)).await {
    Err(AppendError::Conflict { actual, .. }) => assert_eq!(actual, Some(1)),
    other => panic!("somebody else was first: {other:?}"),
}

for event in store.load("order-1", 1).await? {
    println!("{} {} {}", event.version, event.kind, event.data);
}
store.close().await;
        done.last_version
    };
    Ok(example)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_in_rust_works() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(place(&folder.path().join("shop.db")).await.unwrap(), 1);
}
