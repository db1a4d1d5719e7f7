//! Keys: what the configuration file may say, written down once.
//!
//! [`section!`] makes two things of one list: the struct that serde fills, and the table from which the reference is
//! generated. So a key cannot stand in one and be missing in the other.

/// What a key's value looks like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Text,
    /// Text that is never printed.
    Secret,
    /// Text that names a file or a folder, relative to the configuration file's folder.
    Path,
    Duration,
    Size,
    Number,
    /// Text or a whole number.
    Word,
    Bool,
    List,
    /// A table whose keys are the user's own.
    Table,
    /// Where a field of an event comes from.
    Field,
    /// A condition on rows, or what becomes of one.
    Rows,
    /// A table whose keys are names that the user chose, and whose values hold no secret.
    Named,
    /// A table with keys of its own.
    Keys(&'static Section),
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Text => "text",
            Kind::Secret => "text (secret)",
            Kind::Path => "path",
            Kind::Duration => "duration",
            Kind::Size => "size",
            Kind::Number => "number",
            Kind::Word => "text or number",
            Kind::Bool => "true or false",
            Kind::List => "list of text",
            Kind::Field => "column",
            Kind::Rows => "rows",
            Kind::Table | Kind::Named | Kind::Keys(_) => "table",
        }
    }

    /// Whether the key `x` may also be given as `x_file`.
    pub fn may_stand_in_a_file(self) -> bool {
        matches!(self, Kind::Text | Kind::Secret)
    }
}

/// What holds when a key is not said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fallback {
    /// It must be said.
    Required,
    /// This TOML value.
    Value(&'static str),
    /// No value; the words say what that means.
    Absent(&'static str),
}

/// One key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Key {
    raw_name: &'static str,
    pub kind: Kind,
    pub fallback: Fallback,
    /// A TOML value that this key may have.
    pub example: &'static str,
    /// The lines of its doc comment.
    pub meaning: &'static [&'static str],
}

impl Key {
    pub const fn new(
        raw_name: &'static str,
        kind: Kind,
        fallback: Fallback,
        example: &'static str,
        meaning: &'static [&'static str],
    ) -> Self {
        Self { raw_name, kind, fallback, example, meaning }
    }

    pub fn name(&self) -> &'static str {
        self.raw_name.trim_start_matches("r#")
    }
}

/// The keys that stand together under one heading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Section {
    pub heading: &'static str,
    pub about: &'static [&'static str],
    pub keys: &'static [Key],
}

impl Section {
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name() == name)
    }
}

/// A type that a key's value is read into.
pub trait Keyed {
    const KIND: Kind;
}

impl Keyed for String {
    const KIND: Kind = Kind::Text;
}

impl Keyed for bool {
    const KIND: Kind = Kind::Bool;
}

impl Keyed for u64 {
    const KIND: Kind = Kind::Number;
}

/// Declares a section: a struct for serde, and its [`Section`] with one [`Key`] a field.
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        $name:ident, $heading:literal {
            $( $(#[doc = $meaning:literal])* $key:ident: $type:ty, $fallback:expr, $example:literal; )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, Default, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code, reason = "a sink's `type` is read before its section is")]
        pub struct $name {
            $( $(#[doc = $meaning])* pub $key: Option<$type>, )*
        }

        impl $name {
            /// What is said here, and where nothing is, what is said there.
            #[allow(dead_code, reason = "only sources stand upon presets")]
            pub fn or(self, there: Self) -> Self {
                Self { $( $key: self.$key.or(there.$key), )* }
            }

            pub const SECTION: $crate::setting::key::Section = $crate::setting::key::Section {
                heading: $heading,
                about: &[$($about),*],
                keys: &[$(
                    $crate::setting::key::Key::new(
                        stringify!($key),
                        <$type as $crate::setting::key::Keyed>::KIND,
                        $fallback,
                        $example,
                        &[$($meaning),*],
                    )
                ),*],
            };
        }

        impl $crate::setting::key::Keyed for $name {
            const KIND: $crate::setting::key::Kind = $crate::setting::key::Kind::Keys(&Self::SECTION);
        }
    };
}

pub(crate) use section;
