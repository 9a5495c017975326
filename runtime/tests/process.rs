//! Telemetry of a whole process. It can be set up only once, so this test has a process of its own.

use std::time::Duration;

use entrepot_runtime::telemetry::{Config, Otlp, Telemetry, TelemetryError};
use entrepot_runtime::{LogFormat, tls};
use tracing::info_span;

#[tokio::test(flavor = "multi_thread")]
async fn a_process_is_set_up_once_and_ends_though_nobody_takes_its_telemetry() {
    tls::install_provider();
    let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = Config {
        service: "entrepot-test",
        instance: "1".to_owned(),
        log_format: LogFormat::Text,
        log_filter: "info".to_owned(),
        otlp: Some(Otlp {
            endpoint: format!("http://{away}").parse().unwrap(),
            interval: Duration::from_millis(100),
            trace_ratio: 1.0,
            headers: Vec::new(),
        }),
    };
    let telemetry = Telemetry::init(config.clone()).unwrap();
    assert!(matches!(Telemetry::init(config), Err(TelemetryError::Twice)));
    let count = telemetry.metrics().meter("entrepot.test").u64_counter("entrepot.test.count").build();
    for number in 0..10 {
        count.add(1, &[]);
        drop(info_span!(target: "entrepot_test", "pull", number).entered());
    }
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, telemetry.shutdown(Duration::from_millis(500))).await.expect("a bounded end");
}
