//! The header blocks of requests.
//!
//! The first request of a method on a connection puts its fields into the peer's table; every later one is a handful
//! of indexes, as any well-made client's is. A peer with a small table gets literals.

use super::hpack::{put_integer, put_string};

/// The table a peer decodes with unless its settings say otherwise.
const TABLE_BYTES_DEFAULT: usize = 4096;
const ENTRY_OVERHEAD: usize = 32;
/// Entries of the static table.
const STATIC_ENTRIES: usize = 61;

/// A method, by its place in [`Methods`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MethodId(pub usize);

/// The methods a run calls, the same for all of its connections.
#[derive(Clone, Debug, Default)]
pub struct Methods {
    paths: Vec<&'static str>,
}

impl Methods {
    /// The number of a method's path (`/package.Service/Method`).
    pub fn id(&mut self, path: &'static str) -> MethodId {
        let at = self.paths.iter().position(|known| *known == path).unwrap_or_else(|| {
            self.paths.push(path);
            self.paths.len() - 1
        });
        MethodId(at)
    }

    /// A method's path.
    pub fn path(&self, method: MethodId) -> &'static str {
        self.paths.get(method.0).copied().unwrap_or_default()
    }
}

/// One field of every request: how its name is said, and its value.
enum Name {
    Static(usize),
    Text(&'static str),
}

/// One connection's header blocks.
#[derive(Debug)]
pub struct RequestHeaders {
    methods: Methods,
    authority: String,
    /// Fields put into the peer's table, in order.
    inserted: Vec<String>,
    inserted_bytes: usize,
    table_bytes_max: usize,
    /// The peer must first be told that its table is not used.
    table_refused: bool,
    blocks: Vec<Option<Vec<u8>>>,
    first: Vec<u8>,
}

impl RequestHeaders {
    /// The blocks for `methods` on a connection to `authority`.
    pub fn new(methods: Methods, authority: impl Into<String>) -> Self {
        let blocks = vec![None; methods.paths.len()];
        Self {
            methods,
            authority: authority.into(),
            inserted: Vec::new(),
            inserted_bytes: 0,
            table_bytes_max: TABLE_BYTES_DEFAULT,
            table_refused: false,
            blocks,
            first: Vec::new(),
        }
    }

    /// The peer's table is smaller than the default; to be called before the first request.
    pub fn limit_table(&mut self, bytes: usize) {
        if bytes < TABLE_BYTES_DEFAULT {
            self.table_bytes_max = 0;
            self.table_refused = true;
        }
    }

    /// The block of a request to `method`. Each returned block must be sent, in order.
    #[inline]
    pub fn block(&mut self, method: MethodId) -> &[u8] {
        if !matches!(self.blocks.get(method.0), Some(Some(_))) {
            return self.make(method);
        }
        self.blocks.get(method.0).and_then(Option::as_deref).unwrap_or_default()
    }

    fn make(&mut self, method: MethodId) -> &[u8] {
        let before = self.inserted.len();
        let path = self.methods.path(method);
        let mut block = Vec::with_capacity(96);
        let tells = std::mem::take(&mut self.table_refused);
        if tells {
            put_integer(&mut block, 0x20, 5, 0);
        }
        block.extend_from_slice(&[0x83, 0x86]); // :method POST, :scheme http
        let authority = self.authority.clone();
        self.put_field(&mut block, &Name::Static(4), path);
        self.put_field(&mut block, &Name::Static(1), &authority);
        self.put_field(&mut block, &Name::Static(31), "application/grpc");
        self.put_field(&mut block, &Name::Text("te"), "trailers");
        if self.inserted.len() == before && !tells {
            if let Some(slot) = self.blocks.get_mut(method.0) {
                *slot = Some(block.clone());
            }
        } else {
            self.blocks.fill(None); // every index has moved
        }
        self.first = block;
        &self.first
    }

    fn put_field(&mut self, block: &mut Vec<u8>, name: &Name, value: &str) {
        let key = match name {
            Name::Static(index) => format!("{index}:{value}"),
            Name::Text(text) => format!("{text}:{value}"),
        };
        if let Some(at) = self.inserted.iter().position(|known| *known == key) {
            let index = STATIC_ENTRIES + self.inserted.len() - at;
            return put_integer(block, 0x80, 7, index);
        }
        // An over-estimate for static names, whose longest used here has 12 letters.
        let bytes = value.len() + ENTRY_OVERHEAD + 12;
        let insert = self.inserted_bytes + bytes <= self.table_bytes_max;
        let (pattern, prefix) = if insert { (0x40, 6) } else { (0, 4) };
        match name {
            Name::Static(index) => put_integer(block, pattern, prefix, *index),
            Name::Text(text) => {
                block.push(pattern);
                put_string(block, text.as_bytes());
            }
        }
        put_string(block, value.as_bytes());
        if insert {
            self.inserted.push(key);
            self.inserted_bytes += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_requests_are_a_few_indexes() {
        let mut methods = Methods::default();
        let (get, set) = (methods.id("/s.Kv/Get"), methods.id("/s.Kv/Set"));
        assert_eq!(methods.id("/s.Kv/Get"), get);
        let mut headers = RequestHeaders::new(methods, "localhost:1");
        assert!(headers.block(get).len() > 40);
        assert_eq!(headers.block(get), [0x83, 0x86, 0xc1, 0xc0, 0xbf, 0xbe]);
        headers.block(set);
        assert_eq!(headers.block(get), [0x83, 0x86, 0xc2, 0xc1, 0xc0, 0xbf]);
        assert_eq!(headers.block(set), [0x83, 0x86, 0xbe, 0xc1, 0xc0, 0xbf]);
    }

    #[test]
    fn a_peer_without_a_table_gets_literals_and_is_told_so() {
        let mut methods = Methods::default();
        let get = methods.id("/s.Kv/Get");
        let mut headers = RequestHeaders::new(methods, "localhost:1");
        headers.limit_table(0);
        let first = headers.block(get).to_vec();
        assert_eq!(first[0], 0x20);
        let second = headers.block(get).to_vec();
        assert_eq!(second, first[1..]);
        assert_eq!(headers.block(get), second);
    }
}
