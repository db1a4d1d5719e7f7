//! kafka (a stand-in)
use super::format::{Format, HeaderField};
use super::template::Template;
use super::*;
use crate::secret::Secret;
use std::collections::BTreeMap;
use std::path::PathBuf;
#[derive(Clone, Debug)]
pub struct Settings {
    pub bootstrap_servers: Vec<String>,
    pub topic: Template,
    pub key: Option<Template>,
    pub format: Format,
    pub headers: Vec<HeaderField>,
    pub properties: BTreeMap<String, String>,
    pub tls: Option<Tls>,
    pub sasl: Option<Sasl>,
}
#[derive(Clone, Debug)]
pub struct Tls {
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}
#[derive(Clone, Debug)]
pub struct Sasl {
    pub mechanism: Mechanism,
    pub username: String,
    pub password: Secret,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    Plain,
    ScramSha256,
    ScramSha512,
}
pub struct Kafka;
impl Kafka {
    pub fn new(_: Settings, _: Port) -> Self {
        Kafka
    }
}
impl Sink for Kafka {
    fn check(&mut self, _: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        todo!()
    }
    fn send(&mut self, _: Arc<Flight>) {}
    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        todo!()
    }
}
