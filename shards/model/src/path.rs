//! What a resource is called: `tenant/namespace/kind/name`.
//!
//! A client may leave out what goes without saying: `logs` means `default/default/stream/logs` in a call on
//! streams, `acme/prod/logs` names tenant and namespace, and the full form is always accepted if its kind fits.

use std::fmt;

use crate::limits::NAME_BYTES_MAX;
use crate::reject::Reject;

/// The tenant and the namespace of a resource that names none.
pub const DEFAULT_SCOPE: &str = "default";

/// What a resource is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An append-only sequence of records, in partitions.
    Stream,
    /// Jobs that are leased, worked and acknowledged.
    Queue,
    /// Keys with values.
    Kv,
    /// Consumers that share the partitions of streams, and their offsets.
    Group,
    /// A stream that is replayed.
    Replay,
}

impl Kind {
    /// All kinds, in their order on disk.
    pub const ALL: [Self; 5] = [Self::Stream, Self::Queue, Self::Kv, Self::Group, Self::Replay];

    /// The word in a path.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Queue => "queue",
            Self::Kv => "kv",
            Self::Group => "group",
            Self::Replay => "replay",
        }
    }

    /// The kind of that word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A resource's full name. Always valid: see [`ResourcePath::parse`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourcePath {
    tenant: String,
    namespace: String,
    kind: Kind,
    name: String,
}

impl ResourcePath {
    /// Reads `name`, `tenant/namespace/name` or `tenant/namespace/kind/name`; the last must name `kind`.
    ///
    /// # Errors
    /// [`Reject::InvalidArgument`] on an illegal name, [`Reject::WrongKind`] on a full path of another kind.
    pub fn parse(kind: Kind, text: &str) -> Result<Self, Reject> {
        let parts: Vec<&str> = text.split('/').collect();
        let (tenant, namespace, named, name) = match parts.as_slice() {
            [name] => (DEFAULT_SCOPE, DEFAULT_SCOPE, kind, *name),
            [tenant, namespace, name] => (*tenant, *namespace, kind, *name),
            [tenant, namespace, word, name] => {
                let named = Kind::parse(word).ok_or_else(|| {
                    Reject::invalid(
                        "path",
                        format!("`{word}` is no kind; use stream, queue, kv, group or replay in `{text}`"),
                    )
                })?;
                (*tenant, *namespace, named, *name)
            }
            _ => {
                return Err(Reject::invalid(
                    "path",
                    format!(
                        "`{text}` has {} parts; use name, tenant/namespace/name or tenant/namespace/kind/name",
                        parts.len()
                    ),
                ));
            }
        };
        if named != kind {
            return Err(Reject::WrongKind { path: text.to_owned(), expected: kind, actual: named });
        }
        Self::new(tenant, namespace, kind, name)
    }

    /// A path of its four parts.
    ///
    /// # Errors
    /// [`Reject::InvalidArgument`] that names the part and the rule it breaks.
    pub fn new(tenant: &str, namespace: &str, kind: Kind, name: &str) -> Result<Self, Reject> {
        check_scope("tenant", tenant)?;
        check_scope("namespace", namespace)?;
        check_name(name)?;
        Ok(Self { tenant: tenant.to_owned(), namespace: namespace.to_owned(), kind, name: name.to_owned() })
    }

    /// The tenant.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }
    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
    /// The kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }
    /// The last part.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Whether tenant and namespace are the defaults, so that the name alone finds it.
    pub fn is_default_scope(&self) -> bool {
        self.tenant == DEFAULT_SCOPE && self.namespace == DEFAULT_SCOPE
    }
}

impl fmt::Display for ResourcePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.tenant, self.namespace, self.kind, self.name)
    }
}

const ALLOWED: &str = "letters, digits, `.`, `_`, `-`, 1 to 255 of them";

fn check_scope(field: &'static str, text: &str) -> Result<(), Reject> {
    let legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    check_length(field, text)?;
    if text == "." || text == ".." {
        return Err(Reject::invalid(field, format!("`{text}` is reserved")));
    }
    match text.bytes().position(|c| !legal(c)) {
        None => Ok(()),
        Some(at) => Err(Reject::invalid(
            field,
            format!("`{text}` has an illegal character at byte {at}; allowed: {ALLOWED}"),
        )),
    }
}

/// A name may hold one `{tag}`: names that share it are placed together.
fn check_name(text: &str) -> Result<(), Reject> {
    check_length("name", text)?;
    let plain: String = match (text.find('{'), text.find('}')) {
        (None, None) => text.to_owned(),
        (Some(open), Some(close)) if open + 1 < close => {
            let mut plain = text.to_owned();
            plain.remove(close);
            plain.remove(open);
            plain
        }
        _ => return Err(Reject::invalid("name", format!("`{text}` has an empty or unclosed {{tag}}"))),
    };
    check_scope("name", &plain)
}

fn check_length(field: &'static str, text: &str) -> Result<(), Reject> {
    if text.is_empty() {
        return Err(Reject::invalid(field, "is empty".to_owned()));
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(Reject::TooLarge { what: field, size: text.len() as u64, max: NAME_BYTES_MAX as u64 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_full_names_mean_the_same_resource() {
        let full = ResourcePath::parse(Kind::Stream, "default/default/stream/logs").unwrap();
        assert_eq!(ResourcePath::parse(Kind::Stream, "logs").unwrap(), full);
        assert_eq!(ResourcePath::parse(Kind::Stream, "default/default/logs").unwrap(), full);
        assert_eq!(full.to_string(), "default/default/stream/logs");
    }

    #[test]
    fn a_path_of_another_kind_is_refused_by_name() {
        let refused = ResourcePath::parse(Kind::Queue, "default/default/stream/logs").unwrap_err();
        assert_eq!(
            refused,
            Reject::WrongKind {
                path: "default/default/stream/logs".to_owned(),
                expected: Kind::Queue,
                actual: Kind::Stream
            }
        );
    }

    #[test]
    fn illegal_names_are_refused_with_the_place() {
        for bad in ["", "a b", "a/b", "a/b/c/d/e", "ü", "..", "x{}", "x{a", "a}b{", "x{a}{b}", "a/b/topic/c"]
        {
            assert!(ResourcePath::parse(Kind::Kv, bad).is_err(), "{bad:?} was accepted");
        }
        assert!(ResourcePath::parse(Kind::Kv, &"x".repeat(256)).is_err());
        assert!(ResourcePath::parse(Kind::Kv, &"x".repeat(255)).is_ok());
        assert!(ResourcePath::parse(Kind::Kv, "cart{42}").is_ok());
    }
}
