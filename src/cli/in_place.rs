//! `outboxd restore --force` and `--reset-positions`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::backup::{RestoreArgs, choose, only, refused, wanted};
use super::control_client::{self, Answer, Place, Position, Request};
use super::meaning::{self, Meaning, Question};
use super::{Context, Exit, Failure, terminal};
use crate::clock;
use crate::config::Loaded;
use crate::consumer::Settings;
use crate::event;
use crate::maintenance::backup::manifest::{Copied, Manifest, Stands};
use crate::maintenance::backup::replace::{self, Owner, Replaced};
use crate::maintenance::backup::{Backups, Entry, restore};
use crate::maintenance::{self, Job, Stop};
use crate::source;
use crate::source::reader::Mark;
use crate::source::scan::Scan;
use crate::sqlite::place;

/// What the command works with.
struct Restore<'a> {
    loaded: &'a Loaded,
    context: &'a Context,
    job: &'a str,
    backups: &'a Backups,
    from_target: bool,
    entry: &'a Entry,
    manifest: &'a Manifest,
}

pub fn execute(args: &RestoreArgs, context: &Context) -> anyhow::Result<Exit> {
    let loaded = context.load()?;
    let (job, backups) = only(&loaded, args.job.as_deref())?;
    let entry = choose(backups, args.at.as_deref(), args.from_target)?;
    let manifest = entry.manifest.as_ref().map_err(|what| refused(maintenance::Failure::Data(what.clone())))?;
    let restore =
        Restore { loaded: &loaded, context, job, backups, from_target: args.from_target, entry: &entry, manifest };
    let mut told = json!({ "backup": entry.name, "began": manifest.began });
    let mut exit = Exit::Ok;
    if args.force {
        let done = restore.in_place(&wanted(args, &entry, manifest)?)?;
        (told["files"], told["consumers"]) = (done.files, done.consumers);
        exit = done.exit;
    }
    if args.reset_positions {
        told["reset"] = restore.reset_positions()?;
    }
    if context.json {
        terminal::print_json(&told)?;
    }
    Ok(exit)
}

struct Done {
    files: Value,
    consumers: Value,
    exit: Exit,
}

impl Restore<'_> {
    fn in_place(&self, wanted: &[&Copied]) -> anyhow::Result<Done> {
        if let Answer::Given(_) = control_client::ask(&self.loaded.config.daemon.control, &Request::Status)? {
            let reason = "the daemon runs: it would go on with the files of before";
            return Err(Failure::new(Exit::Locked, reason, "stop it, and the application, first").into());
        }
        let places = wanted.iter().map(|copied| self.place_of(copied)).collect::<anyhow::Result<Vec<PathBuf>>>()?;
        let question = || {
            let names: Vec<String> = places.iter().map(|path| terminal::visible(&path.to_string_lossy())).collect();
            Ok(format!("Put {} in the place of {}?", self.entry.name, names.join(", ")))
        };
        terminal::confirm(question, self.context.yes)?;
        let stop = Stop::default();
        let at_hand = self.backups.at_hand(self.entry, self.from_target, &stop).map_err(refused)?;
        let mut ready = Vec::new();
        for (copied, place) in wanted.iter().zip(&places) {
            let owner = Owner { uid: copied.uid, gid: copied.gid };
            match replace::prepare(place, owner, |to| restore::make(&at_hand.entry, copied, to, &stop)) {
                Ok(one) => ready.push((*copied, one)),
                Err(failure) => {
                    ready.into_iter().for_each(|(_, one)| one.give_up());
                    return Err(refused(failure));
                }
            }
        }
        let time = clock::now_micros();
        let (mut replaced, mut left) = (Vec::new(), ready.into_iter());
        for (copied, one) in left.by_ref() {
            match one.put_in_place(time) {
                Ok(one) => replaced.push((copied, one)),
                Err(failure) => {
                    left.for_each(|(_, one)| one.give_up());
                    let done: Vec<String> = replaced.iter().map(|(_, one)| one.place.display().to_string()).collect();
                    replaced.into_iter().for_each(|(_, one)| one.let_go());
                    let error = refused(failure);
                    return Err(match done.is_empty() {
                        true => error,
                        false => error.context(format!("restored are {}, and no more", done.join(", "))),
                    });
                }
            }
        }
        let meanings = self.meanings(&replaced);
        let done = Done {
            files: replaced.iter().map(|(copied, one)| file_json(copied, one)).collect(),
            consumers: meanings.iter().map(|(name, meaning)| meaning.to_json(name)).collect(),
            exit: if replaced.iter().all(|(_, one)| one.late.is_empty()) { Exit::Ok } else { Exit::Locked },
        };
        if !self.context.json {
            let files: String = replaced.iter().map(|(copied, one)| told(self.entry, copied, one)).collect();
            let consumers: String = meanings.iter().map(|(name, meaning)| meaning.told(name)).collect();
            terminal::print(&format!("{files}{consumers}"))?;
        }
        replaced.into_iter().for_each(|(_, one)| one.let_go());
        Ok(done)
    }

    /// Where the configuration has it: a manifest says what was, and is no order to write somewhere.
    fn place_of(&self, copied: &Copied) -> anyhow::Result<PathBuf> {
        let is_it = |path: &PathBuf| path.file_name().is_some_and(|name| name == copied.name.as_str());
        self.backups.files().into_iter().find(is_it).ok_or_else(|| {
            let reason =
                format!("the job {} has no file {:?} any more, so that it has no place", self.job, copied.name);
            Failure::new(Exit::Data, reason, "name it in the job's `files`, or say with --file or --to what you want")
                .into()
        })
    }

    /// Of every consumer whose source or state was replaced.
    fn meanings(&self, replaced: &[(&Copied, Replaced)]) -> Vec<(String, Meaning)> {
        let of = |path: &Path| replaced.iter().map(|(_, one)| one).find(|one| place::is_same(&one.place, path));
        let mut all = Vec::new();
        for consumer in self.loaded.config.consumers() {
            let source = consumer.placed(&self.loaded.config.sources[&consumer.source]);
            let (log, state) = (of(&source.path), of(&source.state_path()));
            if log.is_none() && state.is_none() {
                continue;
            }
            let before = state.filter(|one| one.is_whole).and_then(|one| one.kept.as_ref());
            let before = before.and_then(|kept| meaning::checkpoint(kept, &consumer.name).ok().flatten());
            let question = Question {
                consumer,
                source: &source,
                is_still: log.is_some(),
                before: before.map(|checkpoint| checkpoint.mark.position.0),
                went_back: state.is_some(),
                then: self.then(consumer, &source),
                reset: &self.command(),
            };
            all.push((consumer.name.clone(), question.answer()));
        }
        all
    }

    /// Where a consumer whose state is not in the backup stood when its source was copied.
    fn then(&self, consumer: &Settings, source: &source::Settings) -> Option<&Stands> {
        let mut files = self
            .manifest
            .files
            .iter()
            .filter(|file| self.place_of(file).is_ok_and(|path| place::is_same(&path, &source.path)));
        files
            .find_map(|file| file.found.elsewhere.get(&consumer.name))
            .filter(|stands| stands.source == consumer.source)
    }

    fn command(&self) -> String {
        format!("outboxd restore --reset-positions {} --at {}", self.job, clock::iso(self.entry.time))
    }

    /// Only consumers that cannot go on by themselves are set; where they stood is looked up in the source as it is now.
    fn reset_positions(&self) -> anyhow::Result<Value> {
        let mut wanted = Vec::new();
        let mut text = String::new();
        for consumer in self.loaded.config.consumers() {
            let source = consumer.placed(&self.loaded.config.sources[&consumer.source]);
            let Some(then) = self.then(consumer, &source) else { continue };
            let Some(checkpoint) = meaning::checkpoint(&source.state_path(), &consumer.name)? else { continue };
            let (name, position) = (&consumer.name, checkpoint.mark.position.0);
            let scan = Scan::open(&source)?;
            if scan.is_by_row() || scan.knows(&meaning::marks(&checkpoint, &source))?.is_ok() {
                text += &format!("{name} stays at position {position}: it is not ahead of its source\n");
            } else if consumer.destination.tables().is_some() {
                text += &format!(
                    "{name} stays as it is: its tables hold what is not in its source any more. `outboxd rebuild {name}` makes them anew\n"
                );
            } else {
                let mark = Mark { position: event::Position(then.position), event_id: then.event_id.clone() };
                if let Err(why) = scan.knows(&[mark])? {
                    let reason =
                        format!("{name}: the source is not the one of {}, or is older: {why}", self.entry.name);
                    return Err(Failure::new(
                        Exit::Data,
                        reason,
                        "restore that backup first, or name another with --at",
                    )
                    .into());
                }
                wanted.push((consumer.name.clone(), position, then.position));
            }
        }
        let question = || {
            let list = wanted.iter().map(|(name, from, to)| format!("{name} from position {from} to {to}"));
            Ok(format!("Set {}? What was sent since comes once more", list.collect::<Vec<_>>().join(", ")))
        };
        if !wanted.is_empty() {
            terminal::confirm(question, self.context.yes)?;
        }
        let mut reset = Vec::new();
        for (name, from, to) in wanted {
            let to_place = Place::Position(to);
            self.context.ask(&Request::Position(Position::Set { consumer: name.clone(), to: to_place }))?;
            text += &format!("{name}: {to}, was {from}\n");
            reset.push(json!({ "consumer": name, "position": to, "previous": from }));
        }
        if text.is_empty() {
            text = format!("{} knows no consumer that has its checkpoint in another file\n", self.entry.name);
        }
        if !self.context.json {
            terminal::print(&text)?;
        }
        Ok(Value::Array(reset))
    }
}

fn file_json(copied: &Copied, one: &Replaced) -> Value {
    let late: Vec<String> = one.late.iter().map(ToString::to_string).collect();
    json!({ "name": copied.name, "to": one.place, "kept": one.kept, "left": one.left, "opened_meanwhile": late, "found": copied.found })
}

fn told(entry: &Entry, copied: &Copied, one: &Replaced) -> String {
    let path = |path: &Path| terminal::visible(&path.to_string_lossy());
    let rows: u64 = copied.found.tables.values().sum();
    let mut text = format!("{}: {} of {}, {rows} rows, checked, in place\n", path(&one.place), copied.name, entry.name);
    if let Some(kept) = &one.kept {
        let how = if one.is_whole { "" } else { ", as it was: SQLite cannot read it, nor what lay beside it" };
        text += &format!("  what was there is kept as {}{how}\n", path(kept));
    }
    if let Some(left) = &one.left {
        text += &format!("  a restore that was ended had left a file, which is kept as {}\n", path(left));
    }
    for holder in &one.late {
        text += &format!(
            "  {holder} opened the file of before in this very moment, and would go on with it: END IT before it writes\n"
        );
    }
    text
}
