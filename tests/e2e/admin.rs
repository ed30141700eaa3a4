//! Resources, topology, server information, health and reflection.

use flowmesh_proto::health::health_check_response::ServingStatus;
use flowmesh_proto::health::health_client::HealthClient;
use flowmesh_proto::health::{HealthCheckRequest, HealthCheckResponse};
use flowmesh_proto::reflection::server_reflection_client::ServerReflectionClient;
use flowmesh_proto::reflection::server_reflection_request::MessageRequest;
use flowmesh_proto::reflection::server_reflection_response::MessageResponse;
use flowmesh_proto::reflection::{ServerReflectionRequest, ServerReflectionResponse};
use flowmesh_proto::v1;
use flowmesh_proto::v1::settings::Kind;
use prost::Message;
use tonic::Code;

use crate::common::{Client, Home, now_ms, refused, within};

fn queue(max_attempts: u32) -> Kind {
    Kind::Queue(v1::QueueSettings { max_attempts: Some(max_attempts), ..v1::QueueSettings::default() })
}

fn delete(kind: v1::Kind, name: &str) -> v1::DeleteResourceRequest {
    v1::DeleteResourceRequest { kind: kind as i32, name: name.into() }
}

async fn list(client: &mut Client, request: v1::ListResourcesRequest) -> Vec<String> {
    let mut paths = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListResourcesRequest { page_token, ..request.clone() };
        let answer = client.admin.list_resources(request).await.unwrap().into_inner();
        paths.extend(answer.resources.into_iter().map(|resource| resource.path));
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            return paths;
        }
    }
}

#[tokio::test]
async fn a_resource_is_created_described_changed_and_deleted() {
    let home = Home::new().strict();
    let server = home.start();
    let mut client = server.client().await;
    let before = now_ms();
    let created = client.create("mail", queue(5)).await.unwrap();
    assert!(created.created);
    let made = created.resource.unwrap();
    assert_eq!((made.kind, made.path.as_str()), (v1::Kind::Queue as i32, "default/default/queue/mail"));
    assert!((before..=now_ms()).contains(&made.created_at_ms));
    let Some(Kind::Queue(settings)) = made.settings.clone().unwrap().kind else {
        panic!("settings of a queue")
    };
    assert_eq!((settings.max_attempts, settings.visibility_timeout_ms), (Some(5), Some(30_000)));

    refused(client.create("mail", queue(6)).await, Code::AlreadyExists, "RESOURCE_EXISTS");
    let again = v1::CreateResourceRequest {
        kind: v1::Kind::Queue as i32,
        name: "mail".into(),
        or_existing: true,
        ..v1::CreateResourceRequest::default()
    };
    let again = client.admin.create_resource(again).await.unwrap().into_inner();
    assert!(!again.created && again.resource.as_ref() == Some(&made));

    let backoff = v1::QueueSettings { backoff_initial_ms: Some(7), ..v1::QueueSettings::default() };
    let change = v1::UpdateResourceRequest {
        name: "mail".into(),
        settings: Some(v1::Settings { kind: Some(Kind::Queue(backoff)) }),
        ..v1::UpdateResourceRequest::default()
    };
    let changed = client.admin.update_resource(change).await.unwrap().into_inner().resource.unwrap();
    let Some(Kind::Queue(settings)) = changed.settings.clone().unwrap().kind else {
        panic!("settings of a queue")
    };
    assert_eq!((settings.max_attempts, settings.backoff_initial_ms), (Some(5), Some(7)), "the others stay");

    let describe = v1::DescribeResourceRequest {
        name: "default/default/queue/mail".into(),
        ..v1::DescribeResourceRequest::default()
    };
    let described = client.admin.describe_resource(describe.clone()).await.unwrap().into_inner();
    assert_eq!(described.resource, Some(changed));
    assert_eq!(described.places.len(), 1);

    client.enqueue("mail", ["x"]).await.unwrap();
    client.admin.delete_resource(delete(v1::Kind::Queue, "mail")).await.unwrap();
    refused(client.admin.describe_resource(describe).await, Code::NotFound, "RESOURCE_NOT_FOUND");
    refused(
        client.admin.delete_resource(delete(v1::Kind::Queue, "mail")).await,
        Code::NotFound,
        "RESOURCE_NOT_FOUND",
    );
    // A new one of that name is empty, and another resource.
    let anew = client.create("mail", queue(5)).await.unwrap().resource.unwrap();
    assert!(anew.id > made.id);
    assert_eq!(client.queue_status("mail").await.ready, 0);
}

#[tokio::test]
async fn a_first_write_creates_only_where_the_server_allows_it() {
    let strict = Home::new().strict();
    let server = strict.start();
    let mut client = server.client().await;
    refused(client.append("logs", ["x"]).await, Code::NotFound, "RESOURCE_NOT_FOUND");
    refused(client.set("store", "k", "v").await, Code::NotFound, "RESOURCE_NOT_FOUND");
    refused(client.enqueue("mail", ["x"]).await, Code::NotFound, "RESOURCE_NOT_FOUND");
    assert!(list(&mut client, v1::ListResourcesRequest::default()).await.is_empty());
    drop(server);

    let dev = Home::new();
    let server = dev.start();
    let mut client = server.client().await;
    client.append("logs", ["x"]).await.unwrap();
    client.set("store", "k", "v").await.unwrap();
    client.enqueue("mail", ["x"]).await.unwrap();
    let paths = list(&mut client, v1::ListResourcesRequest::default()).await;
    assert_eq!(
        paths,
        ["default/default/stream/logs", "default/default/queue/mail", "default/default/kv/store"]
    );
}

#[tokio::test]
async fn many_first_writes_at_once_make_one_resource() {
    let home = Home::new();
    let server = home.start();
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..16 {
        let mut client = server.client().await;
        writers.spawn(async move { client.append("logs", [number.to_string()]).await.unwrap().base_offset });
    }
    let mut offsets = writers.join_all().await;
    offsets.sort_unstable();
    assert_eq!(offsets, (0..16).collect::<Vec<_>>());
}

#[tokio::test]
async fn lists_are_in_order_in_pages_and_filtered() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    for i in 0..25 {
        client.create_stream(&format!("s{i:02}"), 1).await;
    }
    client.create("acme/prod/x", queue(3)).await.unwrap();
    let all =
        list(&mut client, v1::ListResourcesRequest { page_size: 7, ..v1::ListResourcesRequest::default() })
            .await;
    assert_eq!(all.len(), 26);
    assert!(all.is_sorted());
    let kind = v1::Kind::Queue as i32;
    let queues =
        list(&mut client, v1::ListResourcesRequest { kind, ..v1::ListResourcesRequest::default() }).await;
    assert_eq!(queues, ["acme/prod/queue/x"]);
    for prefix in ["s1", "default/default/stream/s1"] {
        let request = v1::ListResourcesRequest {
            prefix: prefix.into(),
            page_size: 3,
            ..v1::ListResourcesRequest::default()
        };
        assert_eq!(list(&mut client, request).await.len(), 10, "{prefix}");
    }
}

#[tokio::test]
async fn what_is_fixed_at_creation_cannot_be_changed() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("wide", 4).await;
    let settings = v1::StreamSettings { partitions: Some(3), ..v1::StreamSettings::default() };
    let change = v1::UpdateResourceRequest {
        name: "wide".into(),
        settings: Some(v1::Settings { kind: Some(Kind::Stream(settings)) }),
        ..v1::UpdateResourceRequest::default()
    };
    refused(client.admin.update_resource(change).await, Code::FailedPrecondition, "PARTITIONS_LOWERED");
}

#[tokio::test]
async fn the_server_says_what_it_is() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    let info = client.admin.server_info(v1::ServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.version.as_str(), info.shards, info.auto_create), (env!("CARGO_PKG_VERSION"), 2, true));
    assert_eq!(info.durability, v1::Durability::Always as i32);
    assert!(info.started_at_ms <= now_ms());
}

#[tokio::test]
async fn health_is_serving_for_the_server_and_its_services() {
    let home = Home::new();
    let server = home.start();
    let mut health = HealthClient::new(server.client().await.channel);
    for service in ["", "flowmesh.v1.Stream", "flowmesh.v1.Queue", "flowmesh.v1.Kv", "flowmesh.v1.Admin"] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let unknown = health.check(HealthCheckRequest { service: "none".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let first: HealthCheckResponse = within("the state now", watch.message()).await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    let mut watch = health.watch(HealthCheckRequest { service: "none".into() }).await.unwrap().into_inner();
    let first = within("the state now", watch.message()).await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::ServiceUnknown);
}

async fn reflect(client: &Client, questions: Vec<MessageRequest>) -> Vec<ServerReflectionResponse> {
    let requests: Vec<_> = questions
        .into_iter()
        .map(|question| ServerReflectionRequest { host: String::new(), message_request: Some(question) })
        .collect();
    let count = requests.len();
    let mut reflection = ServerReflectionClient::new(client.channel.clone());
    let mut answers =
        reflection.server_reflection_info(futures::stream::iter(requests)).await.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(answer) = within("an answer", answers.message()).await.unwrap() {
        all.push(answer);
    }
    assert_eq!(all.len(), count);
    all
}

#[tokio::test]
async fn reflection_lists_the_services_and_has_their_files() {
    let home = Home::new();
    let server = home.start();
    let client = server.client().await;
    let questions = vec![
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol("flowmesh.v1.Kv".into()),
        MessageRequest::FileContainingSymbol("flowmesh.v1.Kv.Set".into()),
        MessageRequest::FileByFilename("flowmesh/v1/stream.proto".into()),
        MessageRequest::FileContainingSymbol("no.such.Thing".into()),
    ];
    let answers: Vec<_> = reflect(&client, questions)
        .await
        .into_iter()
        .map(|answer| answer.message_response.unwrap())
        .collect();
    let MessageResponse::ListServicesResponse(services) = &answers[0] else { panic!("{:?}", answers[0]) };
    let names: Vec<&str> = services.service.iter().map(|service| service.name.as_str()).collect();
    for name in [
        "flowmesh.v1.Stream",
        "flowmesh.v1.Queue",
        "flowmesh.v1.Kv",
        "flowmesh.v1.Admin",
        "grpc.health.v1.Health",
    ] {
        assert!(names.contains(&name), "{names:?}");
    }
    for (answer, file) in [
        (&answers[1], "flowmesh/v1/kv.proto"),
        (&answers[2], "flowmesh/v1/kv.proto"),
        (&answers[3], "flowmesh/v1/stream.proto"),
    ] {
        let MessageResponse::FileDescriptorResponse(files) = answer else { panic!("{answer:?}") };
        let found: Vec<String> = files
            .file_descriptor_proto
            .iter()
            .map(|bytes| prost_types::FileDescriptorProto::decode(bytes.as_ref()).unwrap().name().to_owned())
            .collect();
        assert!(found.iter().any(|name| name == file), "{found:?}");
    }
    let MessageResponse::ErrorResponse(error) = &answers[4] else { panic!("{:?}", answers[4]) };
    assert_eq!(error.error_code, Code::NotFound as i32);
}
