//! What the module does to single lines, and properties.

use super::{MASK, redact};
use proptest::prelude::*;

/// Arguments between bars.
fn line(text: &str) -> String {
    redact(&text.split('|').map(str::to_owned).collect::<Vec<_>>()).join("|")
}

#[test]
fn nothing_of_the_secret_is_left() {
    for text in [
        "env|DD_API_KEY=S3CR3T|DD_SITE=datadoghq.com",
        "tool|--token|S3CR3T|--retry|5",
        "tool|--api-key=S3CR3T|-v",
        "mysql|--password=S3CR3T",
        "mysql|--password=ab;S3CR3T",
        "mysql|--password=a S3CR3T",
        "x|--password|-S3CR3T",
        "x|--client-secret|S3CR3T",
        "x|AWS_SECRET_ACCESS_KEY=S3CR3T",
        "x|GOOGLE_APPLICATION_CREDENTIALS=S3CR3T",
        "psql|PGPASSWORD=S3CR3T",
        "x|--dbpassword=S3CR3T",
        "java|-Djavax.net.ssl.keyStorePassword=S3CR3T",
        "x|--clientSecret=S3CR3T",
        "x|DefaultEndpointsProtocol=https;AccountName=a;AccountKey=S3CR3T;EndpointSuffix=b",
        "SSHPASS=S3CR3T|ssh",
        "x|--pass|S3CR3T",
        "curl|https://h/v1?api_key=S3CR3T",
        "curl|https://h/v1?a=b&access_token=S3CR3T#x",
        "docker|run|--env=MYSQL_ROOT_PASSWORD=S3CR3T",
        "systemd-run|--setenv=DD_API_KEY=S3CR3T",
        "kubectl|create|--from-literal=password=S3CR3T",
        "helm|--set=auth.password=S3CR3T",
        "wget|--header=X-Api-Key: S3CR3T",
        "x|--proxy=http://h/?token=S3CR3T",
        "curl|https://bob:S3CR3T@example.com/x",
        "curl|https://u:p@S3CR3T@h/",
        "curl|https://u:p/S3CR3T@h/",
        "curl|-d|{\"user\":\"bob\",\"password\":\"S3CR3T\"}",
        "curl|-d|{\"user\": \"bob\", \"password\": \"S3CR3T\"}",
        "sh|-c|curl -u bob:S3CR3T https://h/",
        "ssh|h|mysqldump --password S3CR3T db",
        "sh|-c|tool --token S3CR3T",
        "sh|-c|tool --token 'S3CR3T S3CR3T'",
        "sh|-c|DD_API_KEY=S3CR3T DD_SITE=\"x\" bash -c \"$(curl -L https://install.datadoghq.com/s.sh)\"",
        "sh|-c|cd /tmp; mysql -pS3CR3T db",
        "sh|-c|curl -H 'Authorization: Bearer S3CR3T' https://h/",
        "curl|-HAuthorization: Bearer S3CR3T|https://h/",
        "sh|-c|curl -H'Authorization: Bearer S3CR3T' https://h/",
        "curl|-HX-Api-Key: S3CR3T|https://h/",
        "curl|--oauth2-bearer|S3CR3T|https://h/",
        "curl|--cert|file.pem:S3CR3T|https://h/",
        "git|clone|https://S3CR3TS3CR3TS3CR3T@github.com/a/b",
        "aws|configure|set|aws_secret_access_key|S3CR3T",
        "curl|-su|bob:S3CR3T|https://h/",
        "curl|-ubob:S3CR3T|https://h/",
        "curl|-x|bob:S3CR3T@proxy:3128|https://h/",
        "mysql|-pS3CR3T",
        "/usr/bin/mysqldump|-u|root|-pS3CR3T",
        "sshpass|-p|S3CR3T|ssh|h",
        "sudo|sshpass|-pS3CR3T|ssh|h",
        "redis-cli|-a|S3CR3T",
        "smbclient|-U|bob%S3CR3T",
        "openssl|rsa|-passin|pass:S3CR3T",
        "curl|-H|X-Auth-Token:  S3CR3T",
        "curl|-H|Authorization: Digest username=S3CR3T",
        "curl|-H|Cookie: session=S3CR3T; other=S3CR3T",
    ] {
        let masked = line(text);
        assert!(!masked.contains("S3CR3T"), "{text} → {masked}");
        assert!(masked.contains(MASK), "{text} → {masked}");
    }
}

#[test]
fn what_is_no_secret_stays() {
    for text in [
        "curl|-fsSL|--retry|5|https://install.datadoghq.com/scripts/install_script_agent7.sh",
        "apt-get|install|-y|datadog-signing-keys",
        "python3|-m|http.server|8080",
        "ssh|-i|/root/.ssh/id_ed25519|deploy@web-3",
        "monkey|--tokenizer|bpe|--keyboard|us|--author|me",
        "sh|-c|DD_SITE=\"x\" bash -c \"$(curl -L https://install.datadoghq.com/s.sh)\"",
        "curl|https://host:8080/@name/x",
        "curl|-x|proxy:3128|http://h/",
        "mysql|-u|root|-h|db",
        "awk|{ print $1 }",
        "date|+%H:%M",
    ] {
        assert_eq!(line(text), text);
    }
}

#[test]
fn the_rest_of_the_line_can_still_be_read() {
    assert_eq!(line("curl|https://bob:S3CR3T@example.com/x"), "curl|https://bob:***@example.com/x");
    assert_eq!(line("curl|-u|bob:S3CR3T|http://h/"), "curl|-u|bob:***|http://h/");
    assert_eq!(line("curl|-H|Authorization: Bearer S3CR3T"), "curl|-H|Authorization: Bearer ***");
    assert_eq!(line("x|AKIAIOSFODNN7EXAMPLE"), "x|***");
    assert_eq!(line("agent|0123456789abcdef0123456789abcdef"), "agent|***");
    assert_eq!(line("sh|-c|A=1 DD_API_KEY=S3CR3T curl h"), "sh|-c|A=1 DD_API_KEY=*** curl h");
    assert_eq!(line("x|sk_live_0123456789abcdefghij"), "x|***");
}

proptest! {
    #[test]
    fn any_arguments_come_back_as_many(args in prop::collection::vec("\\PC{0,40}", 0..6)) {
        prop_assert_eq!(redact(&args).len(), args.len());
    }

    #[test]
    fn a_password_option_never_shows_its_value(value in "[a-z0-9;&@/ ]{1,20}Zq9") {
        for args in [vec![format!("--password={value}")], vec!["--password".to_owned(), value.clone()]] {
            prop_assert!(!redact(&args).join("|").contains("Zq9"));
        }
    }
}
