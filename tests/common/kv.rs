//! Operations on keys, as Redis users write them, over gRPC.

use bytes::Bytes;
use flowmesh::redis_syntax::show::Shown;
use flowmesh::redis_syntax::{Request, parse, words};
use flowmesh_proto::v1;
use tonic::Status;
use v1::operation::Action;

use super::Client;

/// The command that a line is.
#[track_caller]
pub fn command(line: &str) -> Request {
    parse(&words::split(line.as_bytes()).unwrap()).unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// An operation without a condition.
pub fn on(key: impl Into<Bytes>, action: Action) -> v1::Operation {
    v1::Operation { key: key.into(), condition: None, action: Some(action) }
}

/// An answer in one line: `(nil)`, a list in brackets, pairs with colons.
pub fn text(shown: &Shown) -> String {
    match shown {
        Shown::Nil => "(nil)".to_owned(),
        Shown::Word(word) => (*word).to_owned(),
        Shown::Integer(value) => value.to_string(),
        Shown::Decimal(value) => value.to_string(),
        Shown::Bytes(bytes) => bytes.escape_ascii().to_string(),
        Shown::List(items) => format!("[{}]", items.iter().map(text).collect::<Vec<_>>().join(" ")),
        Shown::Pairs(pairs) => {
            let pair = |(first, second): &(Shown, Shown)| format!("{}:{}", text(first), text(second));
            format!("[{}]", pairs.iter().map(pair).collect::<Vec<_>>().join(" "))
        }
    }
}

impl Client {
    /// Carries out operations; one outcome each.
    pub async fn operate(
        &mut self,
        store: &str,
        operations: Vec<v1::Operation>,
        atomic: bool,
    ) -> Result<Vec<v1::OperationOutcome>, Status> {
        let count = operations.len();
        let request = v1::RunRequest { store: store.into(), operations, atomic, as_of: None };
        let outcomes = self.kv.run(request).await?.into_inner().outcomes;
        assert_eq!(outcomes.len(), count);
        Ok(outcomes)
    }

    /// What Redis would answer to a command; the reason if it was refused.
    pub async fn redis(&mut self, store: &str, line: &str) -> Result<Shown, String> {
        let request = command(line);
        let run = v1::RunRequest {
            store: store.into(),
            operations: request.operations.clone(),
            atomic: request.atomic,
            as_of: None,
        };
        match self.kv.run(run).await {
            Ok(response) => {
                let response = response.into_inner();
                request.answer(response.outcomes, response.now_ms).map_err(|error| error.reason)
            }
            Err(status) => {
                let reason = super::client::reason(&status);
                let is_precondition = status.code() == tonic::Code::FailedPrecondition;
                request.answer_to_refusal(&reason, is_precondition).ok_or(reason)
            }
        }
    }

    /// Carries out lines of `COMMAND => ANSWER`, `! REASON` for one that is refused. Blank lines and what stands behind
    /// `#` say nothing. What comes in no order is compared in byte order.
    pub async fn transcript(&mut self, store: &str, lines: &str) {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (line, wanted) = line.split_once("=>").unwrap_or_else(|| panic!("no => in {line}"));
            let answer = self.redis(store, line.trim()).await;
            let found = match answer {
                Ok(shown) => text(&in_order(line.trim(), shown)),
                Err(reason) => format!("! {reason}"),
            };
            assert_eq!(found, wanted.trim(), "{line}");
        }
    }
}

fn in_order(line: &str, mut shown: Shown) -> Shown {
    let unordered =
        ["SMEMBERS", "SINTER ", "SUNION ", "SDIFF ", "HGETALL", "HKEYS", "HVALS", "SPOP", "SRANDMEMBER"];
    if unordered.iter().any(|name| line.starts_with(name)) {
        match &mut shown {
            Shown::List(items) => items.sort_by_key(text),
            Shown::Pairs(pairs) => pairs.sort_by_key(|(first, _)| text(first)),
            _ => {}
        }
    }
    shown
}
