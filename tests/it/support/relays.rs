//! Sections of a configuration. What a test adds stands at the end of a section.

pub fn kafka(name: &str, bootstrap: &str, topic: &str, more: &str) -> String {
    format!("\n[sinks.{name}]\ntype = \"kafka\"\nbootstrap_servers = [\"{bootstrap}\"]\ntopic = \"{topic}\"\n{more}\n")
}

pub fn amqp(name: &str, uri: &str, exchange: &str, routing_key: &str, more: &str) -> String {
    format!(
        "\n[sinks.{name}]\ntype = \"amqp\"\nuri = \"{uri}\"\nexchange = \"{exchange}\"\nrouting_key = \"{routing_key}\"\n{more}\n"
    )
}

/// Lines go to `{name}.ndjson`.
pub fn file(name: &str) -> String {
    format!("\n[sinks.{name}]\ntype = \"file\"\npath = \"{name}.ndjson\"\n")
}

/// From `shop`, named `to_{sink}`.
pub fn relay(sink: &str, more: &str) -> String {
    format!("\n[relays.to_{sink}]\nsource = \"shop\"\nsink = \"{sink}\"\nstart = \"first\"\n{more}\n")
}
