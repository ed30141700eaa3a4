//! `grpc.reflection.v1.ServerReflection`: what grpcurl and its like ask before they call.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use bytes::{Bytes, BytesMut};
use flowmesh_proto::FILE_DESCRIPTOR_SET;
use flowmesh_proto::reflection::server_reflection_request::MessageRequest;
use flowmesh_proto::reflection::server_reflection_response::MessageResponse;
use flowmesh_proto::reflection::{
    ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse,
    ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
};
use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};

use super::{decode, put};
use crate::edge::error_map::GrpcCode;
use crate::edge::grpc::message::put_message;
use crate::edge::grpc::streaming::{Ended, StreamCall};

/// `ServerReflection.ServerReflectionInfo`
pub async fn reflect(call: &mut StreamCall) -> Result<(), Ended> {
    call.open()?;
    while let Some(message) = call.next().await? {
        let request: ServerReflectionRequest = decode(message)?;
        call.reader.release();
        let response = ServerReflectionResponse {
            valid_host: request.host.clone(),
            message_response: Some(answer(index(), request.message_request.as_ref())),
            original_request: Some(request),
        };
        let mut out = BytesMut::new();
        put_message(&mut out, |out| put(out, &response));
        call.send(out.freeze()).await?;
    }
    Ok(())
}

/// All files, by name and by what they declare.
struct Index {
    files: BTreeMap<String, File>,
    /// The file that declares a symbol.
    symbols: BTreeMap<String, String>,
    messages: BTreeSet<String>,
    services: Vec<String>,
}

struct File {
    encoded: Bytes,
    imports: Vec<String>,
}

fn index() -> &'static Index {
    static INDEX: OnceLock<Index> = OnceLock::new();
    INDEX.get_or_init(|| Index::new(FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap_or_default()))
}

impl Index {
    fn new(set: FileDescriptorSet) -> Self {
        let (files, symbols) = (BTreeMap::new(), BTreeMap::new());
        let mut index = Self { files, symbols, messages: BTreeSet::new(), services: Vec::new() };
        for file in set.file {
            index.add(&file);
        }
        index
    }

    fn add(&mut self, file: &FileDescriptorProto) {
        let scope = file.package();
        for message in &file.message_type {
            self.add_message(file.name(), scope, message);
        }
        for kind in &file.enum_type {
            self.declare(file.name(), scope, kind.name());
        }
        for service in &file.service {
            let name = self.declare(file.name(), scope, service.name());
            for method in &service.method {
                self.declare(file.name(), &name, method.name());
            }
            self.services.push(name);
        }
        let encoded = file.encode_to_vec().into();
        self.files.insert(file.name().to_owned(), File { encoded, imports: file.dependency.clone() });
    }

    fn add_message(&mut self, file: &str, scope: &str, message: &DescriptorProto) {
        let name = self.declare(file, scope, message.name());
        for field in &message.field {
            self.declare(file, &name, field.name());
        }
        for kind in &message.enum_type {
            self.declare(file, &name, kind.name());
        }
        for nested in &message.nested_type {
            self.add_message(file, &name, nested);
        }
        self.messages.insert(name);
    }

    fn declare(&mut self, file: &str, scope: &str, name: &str) -> String {
        let full = format!("{scope}.{name}");
        self.symbols.insert(full.clone(), file.to_owned());
        full
    }

    /// A file and all that it imports, itself first.
    fn with_imports(&self, name: &str) -> Option<Vec<Bytes>> {
        let mut names = vec![name];
        let mut encoded = Vec::new();
        let mut at = 0;
        while let Some(name) = names.get(at).copied() {
            let file = self.files.get(name)?;
            encoded.push(file.encoded.clone());
            for import in &file.imports {
                if !names.contains(&import.as_str()) {
                    names.push(import);
                }
            }
            at += 1;
        }
        Some(encoded)
    }
}

fn answer(index: &Index, request: Option<&MessageRequest>) -> MessageResponse {
    match request {
        Some(MessageRequest::ListServices(_)) => MessageResponse::ListServicesResponse(ListServiceResponse {
            service: index.services.iter().map(|name| ServiceResponse { name: name.clone() }).collect(),
        }),
        Some(MessageRequest::FileByFilename(name)) => files(index, name, name),
        Some(MessageRequest::FileContainingSymbol(symbol)) => match index.symbols.get(symbol) {
            Some(file) => files(index, file, symbol),
            None => not_found(symbol),
        },
        Some(MessageRequest::AllExtensionNumbersOfType(name)) if index.messages.contains(name) => {
            let base_type_name = name.clone();
            let none = ExtensionNumberResponse { base_type_name, extension_number: Vec::new() };
            MessageResponse::AllExtensionNumbersResponse(none)
        }
        Some(MessageRequest::AllExtensionNumbersOfType(name)) => not_found(name),
        Some(MessageRequest::FileContainingExtension(extension)) => not_found(&extension.containing_type),
        None => MessageResponse::ErrorResponse(ErrorResponse {
            error_code: GrpcCode::InvalidArgument.number(),
            error_message: "message_request: is missing".to_owned(),
        }),
    }
}

fn files(index: &Index, file: &str, asked: &str) -> MessageResponse {
    match index.with_imports(file) {
        Some(file_descriptor_proto) => {
            MessageResponse::FileDescriptorResponse(FileDescriptorResponse { file_descriptor_proto })
        }
        None => not_found(asked),
    }
}

fn not_found(what: &str) -> MessageResponse {
    MessageResponse::ErrorResponse(ErrorResponse {
        error_code: GrpcCode::NotFound.number(),
        error_message: format!("nothing here is called {what:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(response: MessageResponse) -> Vec<String> {
        let MessageResponse::FileDescriptorResponse(files) = response else { panic!("{response:?}") };
        let name = |file: &Bytes| FileDescriptorProto::decode(file.clone()).unwrap().name().to_owned();
        files.file_descriptor_proto.iter().map(name).collect()
    }

    #[test]
    fn symbols_lead_to_their_file_with_its_imports() {
        let ask = |symbol: &str| answer(index(), Some(&MessageRequest::FileContainingSymbol(symbol.into())));
        let wanted = ["flowmesh/v1/stream.proto", "flowmesh/v1/common.proto"];
        for symbol in [
            "flowmesh.v1.Stream",
            "flowmesh.v1.Stream.Append",
            "flowmesh.v1.Record",
            "flowmesh.v1.Record.key",
        ] {
            assert_eq!(names(ask(symbol)), wanted, "{symbol}");
        }
        assert_eq!(names(ask("google.rpc.Status")), ["google/rpc/status.proto", "google/protobuf/any.proto"]);
        assert!(matches!(ask("flowmesh.v1.Nothing"), MessageResponse::ErrorResponse(e) if e.error_code == 5));
    }

    #[test]
    fn files_and_services_are_listed() {
        let file = MessageRequest::FileByFilename("google/protobuf/any.proto".into());
        assert_eq!(names(answer(index(), Some(&file))), ["google/protobuf/any.proto"]);
        let MessageResponse::ListServicesResponse(list) =
            answer(index(), Some(&MessageRequest::ListServices(String::new())))
        else {
            panic!()
        };
        assert!(list.service.iter().any(|service| service.name == "flowmesh.v1.Queue"));
        assert_eq!(list.service.len(), 10);
    }
}
