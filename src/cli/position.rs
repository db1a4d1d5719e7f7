//! `outboxd position`.

use clap::Subcommand;
use serde::Deserialize;

use super::control_client::{Place, Position, Request};
use super::{Context, Exit, terminal};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tell how far consumers have come
    Show {
        /// Of this consumer only
        #[arg(value_name = "CONSUMER")]
        consumer: Option<String>,
    },
    /// Set where a consumer goes on; events are skipped or sent again, and this cannot be undone
    Set {
        /// The consumer's name
        #[arg(value_name = "CONSUMER")]
        consumer: String,
        /// `first`, `head` or a position; it goes on with the event behind it
        #[arg(value_name = "PLACE", value_parser = place)]
        to: Place,
    },
}

/// A consumer in the daemon's answer.
#[derive(Debug, Deserialize)]
pub struct Standing {
    pub consumer: String,
    pub source: String,
    /// Null for a source that is read by row, and before the first checkpoint.
    pub position: Option<i64>,
    pub event_id: Option<String>,
    pub head: Option<i64>,
    pub updated_at: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Shown {
    positions: Vec<Standing>,
}

pub fn execute(command: &Command, context: &Context) -> anyhow::Result<Exit> {
    let request = match command {
        Command::Show { consumer } => Position::Show { consumer: consumer.clone() },
        Command::Set { consumer, to } => {
            let question = || {
                let show = Position::Show { consumer: Some(consumer.clone()) };
                let shown: Shown = serde_json::from_value(context.ask(&Request::Position(show))?)?;
                let place = shown.positions.first().and_then(|standing| standing.position);
                let place = place.map_or("at the beginning".to_owned(), |position| format!("at {position}"));
                Ok(format!("{} is {place}. Set it to {}?", terminal::visible(consumer), told(to)))
            };
            terminal::confirm(question, context.yes)?;
            Position::Set { consumer: consumer.clone(), to: to.clone() }
        }
    };
    let answer = context.ask(&Request::Position(request))?;
    match (context.json, command) {
        (true, _) => terminal::print_json(&answer)?,
        (false, Command::Show { .. }) => terminal::print(&table(serde_json::from_value(answer)?))?,
        (false, Command::Set { consumer, .. }) => {
            let place = |field: &str| {
                answer[field].as_i64().map_or("the beginning".to_owned(), |position| position.to_string())
            };
            let meaning = match (answer["previous"].as_i64(), answer["position"].as_i64()) {
                (Some(before), Some(after)) if after > before => {
                    format!("; up to {} events are skipped", after.abs_diff(before))
                }
                (Some(before), Some(after)) if after < before => {
                    format!("; up to {} events are sent again", before.abs_diff(after))
                }
                _ => String::new(),
            };
            let (name, before, after) = (terminal::visible(consumer), place("previous"), place("position"));
            terminal::print(&format!("{name}: {after}, was {before}{meaning}\n"))?;
        }
    }
    Ok(Exit::Ok)
}

fn place(text: &str) -> Result<Place, String> {
    match text {
        "first" => Ok(Place::First),
        "head" => Ok(Place::Head),
        _ => match text.parse::<i64>() {
            Ok(position) if position >= 0 => Ok(Place::Position(position)),
            _ => Err("write `first`, `head` or a position".to_owned()),
        },
    }
}

fn told(place: &Place) -> String {
    match place {
        Place::First => "the first event (what was sent is sent again)".to_owned(),
        Place::Head => "the head (what was not sent is skipped)".to_owned(),
        Place::Position(position) => format!("behind position {position}"),
    }
}

fn table(shown: Shown) -> String {
    let none = || "-".to_owned();
    let number = |number: Option<i64>| number.map_or_else(none, |number| number.to_string());
    let rows: Vec<Vec<String>> = shown
        .positions
        .into_iter()
        .map(|standing| {
            vec![
                standing.consumer,
                standing.source,
                number(standing.position),
                number(standing.head),
                standing.event_id.unwrap_or_else(none),
                standing.updated_at.unwrap_or_else(none),
            ]
        })
        .collect();
    terminal::table(&["CONSUMER", "SOURCE", "POSITION", "HEAD", "EVENT", "UPDATED"], &rows)
}
