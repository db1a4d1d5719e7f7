//! A bucket on a real server that speaks S3, looked at by a client of its own: nothing of the daemon's reads or writes here.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use reqwest::{Client, Method, Response};
use tokio::runtime::Runtime;

use super::broker::Broker;

/// The server looks at no signature.
const KEY: &str =
    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";

pub struct Bucket {
    pub endpoint: String,
    pub port: u16,
    pub name: String,
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap())
}

impl Bucket {
    /// A new one on the server that tests share.
    pub fn new(name: &str) -> Self {
        static SERVER: OnceLock<Broker> = OnceLock::new();
        let server = SERVER.get_or_init(|| Broker::start("s3", &[]));
        let bucket = Self { endpoint: server.text("endpoint"), port: server.number("port"), name: name.to_owned() };
        bucket.ask(Method::PUT, "", Vec::new());
        bucket
    }

    fn ask(&self, method: Method, rest: &str, body: Vec<u8>) -> Vec<u8> {
        let url = format!("{}/{}{rest}", self.endpoint, self.name);
        runtime().block_on(async {
            let _ = rustls::crypto::ring::default_provider().install_default();
            let client = Client::builder().no_proxy().build().unwrap();
            let asked = client.request(method, &url).header("Authorization", KEY).body(body).send().await;
            let answer = asked.and_then(Response::error_for_status).unwrap_or_else(|error| panic!("{url}: {error}"));
            answer.bytes().await.unwrap().to_vec()
        })
    }

    /// Every object, with its size.
    pub fn objects(&self) -> BTreeMap<String, u64> {
        let text = String::from_utf8(self.ask(Method::GET, "?list-type=2&max-keys=1000", Vec::new())).unwrap();
        assert!(text.contains("<IsTruncated>false</IsTruncated>"), "{text}");
        let part =
            |of: &str, tag: &str| of.split_once(&format!("<{tag}>")).unwrap().1.split_once("</").unwrap().0.to_owned();
        text.split("<Contents>").skip(1).map(|of| (part(of, "Key"), part(of, "Size").parse().unwrap())).collect()
    }

    pub fn get(&self, key: &str) -> Vec<u8> {
        self.ask(Method::GET, &format!("/{key}"), Vec::new())
    }

    pub fn put(&self, key: &str, bytes: Vec<u8>) {
        self.ask(Method::PUT, &format!("/{key}"), bytes);
    }

    pub fn delete(&self, key: &str) {
        self.ask(Method::DELETE, &format!("/{key}"), Vec::new());
    }
}
