//! Tables that were made anew take the place of the live ones, in one transaction.

use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension};
use serde_json::{Value, json};

use super::{copy, copy_where, definition_of, quoted};
use crate::consumer::Settings;
use crate::controls::{self, Seam};
use crate::projection::{Definition, statement, tables};
use crate::sqlite::guard::Guard;
use crate::sqlite::open;
use crate::sqlite::writer::{JobError, Owner};
use crate::state::checkpoint::{self, Checkpoint};
use crate::state::held;

/// What the tables that were replaced are kept as; whose each of them is stands in `outboxd_meta`, under this and its name.
const KEPT: &str = "outboxd_old_";
const KEPT_BY: &str = "kept:";

/// What is put in the place of what.
pub(super) struct Swap<'a> {
    pub settings: &'a Settings,
    pub scratch: &'a Path,
    /// What the checkpoint has to carry.
    pub definition: &'a str,
    pub with_dead_letters: bool,
    /// The live tables are ahead of their source.
    pub may_go_back: bool,
    pub owner: Owner,
}

/// Whether the live tables can be replaced.
pub(super) enum Swapped {
    Done(Value),
    /// They have gone on meanwhile, and must never go back.
    Behind,
}

impl Swap<'_> {
    /// In the caller's transaction.
    pub(super) fn perform(&self, connection: &Connection, guard: &Guard) -> Result<Swapped, JobError> {
        let (live, path, name) = (definition_of(self.settings)?, self.scratch, &self.settings.name);
        // What is wrong with that file is not wrong with the live one, which would be waited for.
        let unread = |error: &dyn std::fmt::Display| {
            JobError::Refused(format!(
                "{}: {error}. Remedy: see that the daemon may read it, then rebuild again",
                path.display()
            ))
        };
        if !path.exists() {
            return Err(JobError::Refused(format!("{name} was not rebuilt: there is no {}", path.display())));
        }
        let scratch = open::visitor(path).map_err(|error| unread(&error))?;
        let snapshot = scratch.unchecked_transaction().map_err(|error| unread(&error))?;
        let Some(new) = checkpoint::load(&snapshot, name).map_err(|error| unread(&error))? else {
            return Err(JobError::Refused(format!("{name} was not rebuilt: there is no checkpoint of it")));
        };
        if new.definition != self.definition {
            return Err(JobError::Refused(format!(
                "{name} was rebuilt by another definition. Remedy: rebuild it again"
            )));
        }
        let old = checkpoint::load(connection, name)?;
        let is_ahead =
            old.as_ref().is_some_and(|old| old.source == new.source && old.mark.position > new.mark.position);
        if is_ahead && !self.may_go_back {
            return Ok(Swapped::Behind);
        }
        let counts = held::counts(&snapshot, name).map_err(|error| unread(&error))?;
        let dead = counts[1] + counts[2];
        if dead > 0 && !self.with_dead_letters {
            return Err(JobError::Refused(format!(
                "{dead} events were refused when {name} was rebuilt, and the live tables stay as they are. Remedy: mend what refuses them, or \
                 say --with-dead-letters"
            )));
        }
        let configs = [
            (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
            (DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false),
            // Views name a table, not the one that it was renamed from.
            (DbConfig::SQLITE_DBCONFIG_LEGACY_ALTER_TABLE, true),
        ];
        for (config, on) in configs {
            connection.set_db_config(config, on)?;
        }
        let swapped = self.exchange(connection, guard, live, &snapshot);
        for (config, on) in configs {
            connection.set_db_config(config, !on)?;
        }
        let (kept, rows) = swapped?;
        // A trigger is looked at only when something sets it off.
        if let Some(misfit) = statement::prove(connection, guard, live)?.first() {
            return Err(JobError::Refused(format!(
                "what others have in {} does not fit the tables of {name} as they are made now: {misfit}; nothing was changed. Remedy: mend or \
                 drop it, then rebuild again",
                live.path.display()
            )));
        }
        connection.execute("DELETE FROM outboxd_held WHERE consumer = ?1", [name])?;
        copy_where(&snapshot, connection, "outboxd_held", name)?;
        checkpoint::put(connection, &Checkpoint { ..new.clone() })?;
        checkpoint::keep_section(connection, name, &live.as_json())?;
        controls::reach(Seam::Swap);
        Ok(Swapped::Done(json!({
            "consumer": name, "position": new.mark.position.0, "previous": old.map(|old| old.mark.position.0),
            "rows": rows, "kept": kept, "dead_letters": dead,
        })))
    }

    /// Old tables are kept under another name, the new ones made and filled.
    fn exchange(
        &self,
        connection: &Connection,
        guard: &Guard,
        definition: &Definition,
        from: &Connection,
    ) -> Result<(Vec<String>, u64), JobError> {
        let before = checkpoint::section(connection, &definition.name)?.map(|section| made_by(definition, &section));
        self.refuse_others(connection, definition, before.as_ref())?;
        let old_ones = before.as_ref().unwrap_or(definition);
        let own_parts = before.as_ref().map_or(Ok(Vec::new()), tables::parts)?;
        let is_own = |part: &Part| own_parts.iter().any(|own| own.eq_ignore_ascii_case(&part.name));
        let (mut kept, mut of_others) = (Vec::new(), Vec::new());
        for view in old_ones.views.iter().chain(&definition.views) {
            of_others.extend(parts_of(connection, view)?.into_iter().filter(|part| !is_own(part)));
            connection.execute_batch(&format!("DROP VIEW IF EXISTS {}", quoted(view)))?;
        }
        let mut old = [old_ones.tables.clone(), definition.tables.clone()].concat();
        old.sort();
        old.dedup();
        for table in old {
            if !is_there(connection, &table) {
                continue;
            }
            let parts = parts_of(connection, &table)?;
            for part in &parts {
                connection.execute_batch(&format!("DROP {} {}", part.kind, quoted(&part.name)))?;
            }
            of_others.extend(parts.into_iter().filter(|part| !is_own(part)));
            kept.push(keep(connection, &definition.name, &table)?);
        }
        controls::reach(Seam::Swap);
        tables::make(connection, guard, definition)?;
        let mut rows = 0;
        for table in &definition.tables {
            // What the schema itself puts in was put in there, too.
            connection.execute(&format!("DELETE FROM {}", quoted(table)), [])?;
            rows += copy(from, connection, table, table)?;
        }
        of_others.iter().try_for_each(|part| part.make_again(connection, &definition.name))?;
        controls::reach(Seam::Swap);
        Ok((kept, rows))
    }

    /// Tables and views that the projection has not made are not taken over. In a file of its own, where nothing was made yet, whoever asks
    /// for a rebuild means what is there: it is kept under another name.
    fn refuse_others(
        &self,
        connection: &Connection,
        definition: &Definition,
        before: Option<&Definition>,
    ) -> Result<(), JobError> {
        if before.is_none() && self.owner == Owner::Ourselves {
            return Ok(());
        }
        for (part, wanted) in [("tables", &definition.tables), ("views", &definition.views)] {
            let made = before.map_or(&[][..], |before| if part == "tables" { &before.tables } else { &before.views });
            let is_foreign =
                |name: &&String| !made.iter().any(|own| own.eq_ignore_ascii_case(name)) && is_there(connection, name);
            if let Some(taken) = wanted.iter().find(is_foreign) {
                return Err(JobError::Refused(format!(
                    "{taken} is there already, and {} has not made it; nothing was changed. Remedy: name another one in `{part}` and `schema`, \
                     or take it out of the way",
                    definition.name
                )));
            }
        }
        Ok(())
    }
}

/// The definition that a recorded section is of, as far as it tells what was made.
fn made_by(definition: &Definition, section: &Value) -> Definition {
    let names = |part: &str| -> Vec<String> {
        let list = section[part].as_array().into_iter().flatten();
        list.filter_map(|name| name.as_str().map(str::to_owned)).collect()
    };
    let schema = section["schema"].as_str().unwrap_or_default().to_owned();
    Definition { tables: names("tables"), views: names("views"), schema, ..definition.clone() }
}

/// An index or a trigger that stands on a table or a view.
struct Part {
    kind: String,
    name: String,
    sql: String,
}

fn parts_of(connection: &Connection, table: &str) -> rusqlite::Result<Vec<Part>> {
    let sql = "SELECT type, name, sql FROM sqlite_schema WHERE tbl_name = ?1 COLLATE NOCASE AND type IN ('index', 'trigger') \
               AND sql IS NOT NULL";
    let mut statement = connection.prepare(sql)?;
    let parts =
        statement.query_map([table], |row| Ok(Part { kind: row.get(0)?, name: row.get(1)?, sql: row.get(2)? }))?;
    parts.collect()
}

impl Part {
    /// Somebody else has put it on the old table, and means the new one as well.
    fn make_again(&self, connection: &Connection, projection: &str) -> Result<(), JobError> {
        let (kind, name) = (&self.kind, &self.name);
        let is_there = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE)";
        if connection.query_row(is_there, [name], |row| row.get(0))? {
            return Ok(());
        }
        connection.execute_batch(&self.sql).map_err(|error| {
            JobError::Refused(format!(
                "the {kind} {name} is somebody else's, and does not fit the tables of {projection} as they are made now: {error}; nothing was \
                 changed. Remedy: drop it, then rebuild again"
            ))
        })
    }
}

/// Keeps a table under another name, without what stands on it.
fn keep(connection: &Connection, projection: &str, table: &str) -> Result<String, JobError> {
    let as_kept = format!("{KEPT}{table}");
    if is_there(connection, &as_kept) {
        let owner = kept_by(connection, &as_kept)?;
        if owner.as_deref() != Some(projection) {
            let whose = owner.map_or("nobody knows whose it is".to_owned(), |owner| format!("{owner} has kept it"));
            return Err(JobError::Refused(format!(
                "{as_kept} is there already, and {whose}; nothing was changed. Remedy: drop it (`outboxd rebuild <its projection> --drop`, or \
                 DROP TABLE), then rebuild again"
            )));
        }
        connection.execute_batch(&format!("DROP TABLE {}", quoted(&as_kept)))?;
    }
    let refers = "SELECT EXISTS (SELECT 1 FROM pragma_foreign_key_list(?1))";
    connection.execute_batch(&match connection.query_row(refers, [table], |row| row.get(0))? {
        // It would go on referring to the table of that name, which is the new one: whoever deletes there would ask the old rows.
        true => format!(
            "CREATE TABLE {kept} AS SELECT * FROM {table}; DROP TABLE {table}",
            kept = quoted(&as_kept),
            table = quoted(table)
        ),
        false => format!("ALTER TABLE {} RENAME TO {}", quoted(table), quoted(&as_kept)),
    })?;
    let sql = "INSERT OR REPLACE INTO outboxd_meta (name, value) VALUES (?1, ?2)";
    connection.execute(sql, [format!("{KEPT_BY}{as_kept}").as_str(), projection])?;
    Ok(as_kept)
}

/// Whose a kept table is.
fn kept_by(connection: &Connection, as_kept: &str) -> rusqlite::Result<Option<String>> {
    let sql = "SELECT value FROM outboxd_meta WHERE name = ?1 COLLATE NOCASE";
    connection.query_row(sql, [format!("{KEPT_BY}{as_kept}")], |row| row.get(0)).optional()
}

/// Drops the tables that this projection's rebuilds have kept.
pub(super) fn drop_kept(connection: &Connection, name: &str) -> Result<Value, JobError> {
    let sql =
        "DELETE FROM outboxd_meta WHERE name GLOB ?1 || '*' AND value = ?2 RETURNING substr(name, 1 + length(?1))";
    let mut statement = connection.prepare(sql)?;
    let mut kept: Vec<String> = statement.query_map([KEPT_BY, name], |row| row.get(0))?.collect::<Result<_, _>>()?;
    kept.retain(|table| is_there(connection, table));
    kept.sort();
    for table in &kept {
        connection.execute_batch(&format!("DROP TABLE {}", quoted(table)))?;
    }
    Ok(json!({ "consumer": name, "dropped": kept }))
}

fn is_there(connection: &Connection, table: &str) -> bool {
    open::columns(connection, table).is_ok_and(|columns| !columns.is_empty())
}
