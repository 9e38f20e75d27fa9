//! The JSON door for a caller that accepts JSON: the same messages as the gRPC door's, in protobuf's JSON mapping.

use serde_json::{Value, json};

use crate::support::{Answer, TestGateway};

fn object(answer: &Answer) -> Value {
    assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
    serde_json::from_str(&answer.body).unwrap()
}

#[tokio::test]
async fn a_caller_that_accepts_json_gets_the_whole_outcome_and_one_that_does_not_the_legacy_line() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    let body = r#"{"USERID":"ann","event":"mail","message":"m","unknown":[1]} and more"#;
    for kind in ["application/json", "text/html, application/json;q=0.9"] {
        let outcome = object(&gateway.json().accept(kind).post(body).await);
        assert_eq!((&outcome["level"], &outcome["matched"]), (&json!("LEVEL_ACCEPTED"), &json!("1")));
        assert_eq!((&outcome["accepted"], &outcome["dropped"]), (&json!("1"), &json!("0")));
        assert!(outcome["messageId"].as_str().unwrap().contains('-'));
        assert_eq!(phone.next_text().await, "m");
    }
    // The last is what a widespread library sends for callers who did not ask.
    for kind in ["text/plain", "*/*", "application/json, text/plain, */*"] {
        assert_eq!(gateway.json().accept(kind).post(body).await.body, "message sent to 1 clients");
    }
    let stray = r#"{"userId":"ann","event":"mail","message":"m","waitFor":{"a":1},"ttl":true}"#;
    assert_eq!(gateway.json().post(stray).await.body, "message sent to 1 clients", "unknown keys, as ever");
}

#[tokio::test]
async fn the_options_of_the_grpc_door_are_understood() {
    let gateway = TestGateway::start().await;
    let _phones = (gateway.bind("ann", "mail").await, gateway.bind("ann", "mail").await);
    let mut json = gateway.json().accept("application/json");
    let push = json!({
        "userId": "ann", "event": "mail", "message": "m", "waitFor": "LEVEL_WRITTEN", "ttl": "60s",
        "priority": "PRIORITY_HIGH", "perConnection": true, "idempotencyKey": "1",
    });
    let outcome = object(&json.post(push.to_string()).await);
    assert_eq!((&outcome["level"], &outcome["written"]), (&json!("LEVEL_WRITTEN"), &json!("2")));
    assert_eq!((outcome["connections"].as_array().unwrap().len(), &outcome["replayed"]), (2, &json!(false)));
    let again = object(&json.post(push.to_string()).await);
    assert_eq!((&again["messageId"], &again["replayed"]), (&outcome["messageId"], &json!(true)));
    let binary = json!({ "userId": "ann", "event": "mail", "binary": "AAEC" });
    assert_eq!(object(&json.post(binary.to_string()).await)["accepted"], json!("2"));
}

#[tokio::test]
async fn what_is_wrong_is_told_with_its_field() {
    let gateway = TestGateway::start().await;
    let mut json = gateway.json().accept("application/json");
    for (push, field) in [
        (json!({ "userId": "", "event": "mail", "message": "m" }), "user_id"),
        (json!({ "userId": "ann", "event": "mail" }), "message"),
        (json!({ "userId": "ann", "event": "mail", "message": "m", "ttl": "-1s" }), "ttl"),
        (json!({ "userId": "ann", "event": "mail", "message": "m", "waitFor": "LEVEL_NONE" }), ""),
        (json!({ "userId": "ann", "event": "mail", "message": 7 }), ""),
    ] {
        let answer = json.post(push.to_string()).await;
        let error = object(&answer);
        assert_eq!((answer.status, &error["code"], &error["field"]), (400, &json!(3), &json!(field)), "{push}");
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_batch_has_a_result_for_each_push_in_order() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    let mut json = gateway.json().path("/push/batch");
    let batch = json!({ "pushes": [
        { "userId": "ann", "event": "mail", "message": "1" },
        { "userId": "ann", "event": "", "message": "2" },
        { "userId": "ann", "event": "mail", "message": "3" },
    ] });
    let answer = object(&json.post(batch.to_string()).await);
    assert_eq!(answer["results"][0]["outcome"]["accepted"], json!("1"));
    assert_eq!(answer["results"][1]["error"]["field"], json!("event"));
    assert_eq!(answer["results"][2]["outcome"]["accepted"], json!("1"));
    assert_eq!((phone.next_text().await, phone.next_text().await), ("1".to_owned(), "3".to_owned()));
    let empty = json.post("{}").await;
    assert_eq!((empty.status, &object(&empty)["field"]), (400, &json!("pushes")));
}
