//! Sets of settings, each defined once: from the definition follow the flags, the environment variables, the keys of
//! the file, the defaults, and the text that documents them.

use std::fmt::Write as _;
use std::path::Path;

use super::ConfigError;
use super::file::{self, Keys};

/// One setting, as it is documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettingText {
    /// The key in the file, and the flag.
    pub key: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// Its default.
    pub default: DefaultText,
}

/// A setting's default, as it is documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultText {
    /// This value.
    Value(&'static str),
    /// No value; this is what happens then.
    Absent(&'static str),
    /// There is none: this, for example, has to be said.
    Needed(&'static str),
}

/// What was said about one role; nothing where nothing was said.
pub trait Settings: Sized + Default {
    /// The settings, complete.
    type Options;

    /// Every setting, in the order in which they are shown.
    fn texts() -> Vec<SettingText>;

    /// Takes the settings out of a file's keys.
    #[doc(hidden)]
    fn take(keys: &mut Keys) -> Self;

    /// These settings, and the others where these say nothing.
    #[must_use]
    fn or(self, others: Self) -> Self;

    /// These settings, and the defaults where these say nothing.
    fn with_defaults(self) -> Self::Options;

    /// Completes what flags and environment said with a file, if one is named, and the defaults.
    ///
    /// # Errors
    /// When the file cannot be used; every mistake in it is reported, not only the first.
    fn resolve(self, file: Option<&Path>) -> Result<Self::Options, ConfigError> {
        Ok(self.merged(file)?.with_defaults())
    }

    /// Completes what flags and environment said with a file, if one is named.
    ///
    /// # Errors
    /// When the file cannot be used; every mistake in it is reported, not only the first.
    fn merged(self, file: Option<&Path>) -> Result<Self, ConfigError> {
        match file {
            Some(path) => Ok(self.or(file::read(path)?)),
            None => Ok(self),
        }
    }

    /// A file that says what is so without it, with the meaning of every setting.
    fn documented() -> String {
        let mut text = String::new();
        for SettingText { key, meaning, default } in Self::texts() {
            if !text.is_empty() {
                text.push('\n');
            }
            let written = match default {
                DefaultText::Value(value) => writeln!(text, "# {meaning}.\n{key} = \"{value}\""),
                DefaultText::Absent(instead) => {
                    writeln!(text, "# {meaning}. Without it: {instead}.\n#{key} = \"\"")
                }
                DefaultText::Needed(example) => {
                    writeln!(text, "# {meaning}. Needed.\n#{key} = \"{example}\"")
                }
            };
            written.expect("BUG: text takes everything");
        }
        text
    }
}

/// Defines a set of settings. A setting is `fixed` if it has a default value, `needed` if it has to be given (and comes
/// with an example), else `optional` (and comes with what happens without it). Settings that several roles have are a
/// set of their own, named after the role's.
macro_rules! settings {
    (
        $(#[doc = $about:literal])+
        $settings:ident => $options:ident {
            $(
                $field:ident: $kind:ident $type:ty, $key:literal, $env:literal, $value_name:literal,
                $meaning:literal, $default:literal;
            )+
        }
        $( $part:ident: $part_settings:ident => $part_options:ident; )*
    ) => {
        $(#[doc = $about])+
        ///
        /// What flags and environment said; `None` where they said nothing.
        #[derive(Debug, Clone, Default, PartialEq, clap::Args)]
        pub struct $settings {
            $(
                #[doc = concat!($meaning, ".")]
                #[arg(
                    long = $key,
                    env = $env,
                    value_name = $value_name,
                    help = crate::config::settings::settings!(@help $kind $meaning, $default)
                )]
                pub $field: Option<$type>,
            )+
            $(
                /// Settings that other roles have too.
                #[command(flatten)]
                pub $part: $part_settings,
            )*
        }

        $(#[doc = $about])+
        ///
        /// Complete.
        #[derive(Debug, Clone, PartialEq)]
        pub struct $options {
            $(
                #[doc = concat!($meaning, ".")]
                pub $field: crate::config::settings::settings!(@type $kind $type),
            )+
            $(
                /// Settings that other roles have too.
                pub $part: $part_options,
            )*
        }

        impl crate::config::settings::Settings for $settings {
            type Options = $options;

            fn texts() -> Vec<crate::config::settings::SettingText> {
                let own = [
                    $(
                        crate::config::settings::SettingText {
                            key: $key,
                            meaning: $meaning,
                            default: crate::config::settings::settings!(@text $kind $default),
                        },
                    )+
                ];
                let parts: Vec<Vec<crate::config::settings::SettingText>> =
                    vec![ $( <$part_settings as crate::config::settings::Settings>::texts(), )* ];
                own.into_iter().chain(parts.into_iter().flatten()).collect()
            }

            fn take(keys: &mut crate::config::file::Keys) -> Self {
                Self {
                    $( $field: keys.take($key), )+
                    $( $part: crate::config::settings::Settings::take(keys), )*
                }
            }

            fn or(self, others: Self) -> Self {
                Self {
                    $( $field: self.$field.or(others.$field), )+
                    $( $part: crate::config::settings::Settings::or(self.$part, others.$part), )*
                }
            }

            fn with_defaults(self) -> $options {
                $options {
                    $( $field: crate::config::settings::settings!(@complete $kind self.$field, $default), )+
                    $( $part: crate::config::settings::Settings::with_defaults(self.$part), )*
                }
            }
        }

        impl Default for $options {
            fn default() -> Self {
                crate::config::settings::Settings::with_defaults($settings::default())
            }
        }
    };
    (@type fixed $type:ty) => { $type };
    (@type optional $type:ty) => { Option<$type> };
    (@type needed $type:ty) => { Option<$type> };
    (@help fixed $meaning:literal, $default:literal) => { concat!($meaning, " [default: ", $default, "]") };
    (@help optional $meaning:literal, $default:literal) => { concat!($meaning, " [default: ", $default, "]") };
    (@help needed $meaning:literal, $default:literal) => { concat!($meaning, ", such as ", $default) };
    (@text fixed $default:literal) => { crate::config::settings::DefaultText::Value($default) };
    (@text optional $default:literal) => { crate::config::settings::DefaultText::Absent($default) };
    (@text needed $default:literal) => { crate::config::settings::DefaultText::Needed($default) };
    (@complete fixed $given:expr, $default:literal) => {
        match $given {
            Some(value) => value,
            None => $default.parse().expect("BUG: a default is no value of its setting"),
        }
    };
    (@complete optional $given:expr, $default:literal) => { $given };
    (@complete needed $given:expr, $default:literal) => { $given };
}

pub(crate) use settings;
