//! What a resource is called: `tenant/namespace/kind/name`.
//!
//! A client may leave out what goes without saying: `logs` means `default/default/stream/logs` in a call on
//! streams, `acme/prod/logs` names tenant and namespace, and the full form is always accepted if its kind fits.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

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

/// A resource's full name. Always valid: see [`ResourcePath::parse`]. A clone shares the text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ResourcePath {
    /// `tenant/namespace/kind/name`
    text: Arc<str>,
    tenant_len: u8,
    namespace_len: u8,
    kind: Kind,
}

/// The full form of a name, put together without an allocation.
pub(crate) type FullName = SmallVec<[u8; 96]>;

/// The full form of a name in any form that [`ResourcePath::parse`] accepts. `None`: it has another number of parts, or is
/// of another kind. What it says may still be illegal.
pub(crate) fn full_name(kind: Kind, text: &str) -> Option<FullName> {
    let mut parts = text.split('/');
    let all = [parts.next(), parts.next(), parts.next(), parts.next(), parts.next()];
    let (tenant, namespace, name) = match all {
        [Some(name), None, ..] => (DEFAULT_SCOPE, DEFAULT_SCOPE, name),
        [Some(tenant), Some(namespace), Some(name), None, _] => (tenant, namespace, name),
        [Some(tenant), Some(namespace), Some(word), Some(name), None] if word == kind.as_str() => {
            (tenant, namespace, name)
        }
        _ => return None,
    };
    let mut full = FullName::new();
    for part in [tenant, "/", namespace, "/", kind.as_str(), "/", name] {
        full.extend_from_slice(part.as_bytes());
    }
    Some(full)
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
        check_name("name", name)?;
        let text = format!("{tenant}/{namespace}/{kind}/{name}").into();
        Ok(Self { text, tenant_len: tenant.len() as u8, namespace_len: namespace.len() as u8, kind })
    }

    fn part(&self, from: usize, len: usize) -> &str {
        self.text.get(from..from + len).unwrap_or_default()
    }

    /// The full form.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The full form, shared.
    pub(crate) fn shared(&self) -> Arc<str> {
        Arc::clone(&self.text)
    }

    /// How long `tenant/namespace/` is.
    pub(crate) fn scope_len(&self) -> usize {
        usize::from(self.tenant_len) + 1 + usize::from(self.namespace_len) + 1
    }

    /// The tenant.
    pub fn tenant(&self) -> &str {
        self.part(0, self.tenant_len.into())
    }
    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.part(usize::from(self.tenant_len) + 1, self.namespace_len.into())
    }
    /// The kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }
    /// The last part.
    pub fn name(&self) -> &str {
        self.text.get(self.scope_len() + self.kind.as_str().len() + 1..).unwrap_or_default()
    }
    /// Whether tenant and namespace are the defaults, so that the name alone finds it.
    pub fn is_default_scope(&self) -> bool {
        self.tenant() == DEFAULT_SCOPE && self.namespace() == DEFAULT_SCOPE
    }
}

/// By tenant, namespace, kind and name.
impl Ord for ResourcePath {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.tenant(), self.namespace(), self.kind, self.name()).cmp(&(
            other.tenant(),
            other.namespace(),
            other.kind,
            other.name(),
        ))
    }
}

impl PartialOrd for ResourcePath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for ResourcePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for ResourcePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

const ALLOWED: &str = "letters, digits, `.`, `_`, `-`, 1 to 255 of them";

/// Checks a name: of a tenant, a namespace, or of something that is named within a resource.
///
/// # Errors
/// [`Reject::InvalidArgument`], [`Reject::TooLarge`].
pub fn check_scope(field: &'static str, text: &str) -> Result<(), Reject> {
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

/// Checks a name that may hold one `{tag}`: names that share it are placed together.
pub(crate) fn check_name(field: &'static str, text: &str) -> Result<(), Reject> {
    check_length(field, text)?;
    let plain: String = match (text.find('{'), text.find('}')) {
        (None, None) => text.to_owned(),
        (Some(open), Some(close)) if open + 1 < close => {
            let mut plain = text.to_owned();
            plain.remove(close);
            plain.remove(open);
            plain
        }
        _ => return Err(Reject::invalid(field, format!("`{text}` has an empty or unclosed {{tag}}"))),
    };
    check_scope(field, &plain)
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
    fn a_path_gives_its_parts_back_and_is_in_their_order() {
        let path = |tenant: &str, namespace: &str, kind, name: &str| {
            let path = ResourcePath::new(tenant, namespace, kind, name).unwrap();
            assert_eq!(
                (path.tenant(), path.namespace(), path.kind(), path.name()),
                (tenant, namespace, kind, name)
            );
            assert_eq!(full_name(kind, path.as_str()).unwrap()[..], *path.as_str().as_bytes());
            path
        };
        let long = "x".repeat(255);
        path(&long, &long, Kind::Group, &long);
        // In an order in which the texts are not.
        let ordered = [
            path("a", "b", Kind::Stream, "z"),
            path("a", "b", Kind::Queue, "a"),
            path("a", "b-", Kind::Stream, "a"),
            path("a-", "b", Kind::Stream, "a"),
        ];
        assert!(ordered.is_sorted());
        let full = |name| full_name(Kind::Queue, name).map(|full| String::from_utf8(full.to_vec()).unwrap());
        assert_eq!(full("mail").as_deref(), Some("default/default/queue/mail"));
        assert_eq!(full("a/b/mail").as_deref(), Some("a/b/queue/mail"));
        assert_eq!([full("a/b"), full("a/b/stream/mail"), full("a/b/queue/mail/x")], [None, None, None]);
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
