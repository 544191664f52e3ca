//! Programs that take a secret where its name does not say so.

use std::{collections::HashMap, sync::LazyLock};

/// How a program takes secrets. Lists are parted by blanks. A program may have several entries.
pub(super) struct Program {
    /// File names, in lower case.
    pub(super) names: &'static str,
    /// Words that must have come, in this order, for the entry to hold: a subcommand, an option.
    pub(super) after: &'static str,
    /// Options whose value is a secret, in the same word or in the next.
    pub(super) secret: &'static str,
    /// Options whose value is a secret in the next word.
    pub(super) apart: &'static str,
    /// Options whose value is a secret in the same word.
    pub(super) attached: &'static str,
    /// Options whose value is `user:password`, `user%password` or `user,password`.
    pub(super) user: &'static str,
    /// Options whose value is no secret, though other programs have one there.
    pub(super) plain: &'static str,
    /// All words but options are secrets after so many.
    pub(super) positional: Option<usize>,
    /// Words before a secret.
    pub(super) words: &'static str,
    /// A bare word whose name promises a secret stands before one.
    pub(super) named: bool,
    /// The login is `user/password@database`.
    pub(super) slash: bool,
    /// Words with which it reads a secret from its input; `*` if it always does.
    pub(super) reads: &'static str,
    /// Only as the first word of a command: the name is a common word.
    pub(super) first: bool,
    /// What programs before it take is over.
    pub(super) ends: bool,
}

const NONE: Program = Program {
    names: "",
    after: "",
    secret: "",
    apart: "",
    attached: "",
    user: "",
    plain: "",
    positional: None,
    words: "",
    named: false,
    slash: false,
    reads: "",
    first: false,
    ends: false,
};

/// The programs.
pub(super) const PROGRAMS: &[Program] = &[
    // Those that end what the one before takes, as `sshpass -p X ssh -p 22`.
    Program { names: "ssh scp sftp ssh-copy-id autossh mosh", ends: true, ..NONE },
    Program { names: "rsync", ends: true, plain: "-u", ..NONE },
    Program { names: "sort", plain: "--key -k", ..NONE },
    // Clients of the web.
    Program { names: "curl curlie", user: "-u --user -U --proxy-user -E --cert", secret: "-b", ..NONE },
    Program { names: "wget wget2 aria2c axel", user: "--user-password", ..NONE },
    Program { names: "http https xh xhs httpie", user: "-a --auth", secret: "-a --auth", ..NONE },
    Program { names: "ab", user: "-A -P", secret: "-C", ..NONE },
    Program { names: "hey siege wrk bombardier oha", user: "-a", ..NONE },
    Program { names: "lftp", user: "-u", ..NONE },
    Program { names: "open", user: "-u", first: true, ..NONE },
    // A line of `.netrc`.
    Program { names: "machine", words: "password account", first: true, ..NONE },
    Program { names: "ncftp ncftpget ncftpput ncftpls yt-dlp youtube-dl gallery-dl", secret: "-p", ..NONE },
    Program { names: "swaks", apart: "-ap", ..NONE },
    Program { names: "sendemail", apart: "-xp", ..NONE },
    Program { names: "imapsync offlineimap", apart: "--password1 --password2", ..NONE },
    // Windows networks.
    Program {
        names: "smbclient rpcclient net smbget smbcacls smbcquotas smbtree smbmap winexe wmic samba-tool nmblookup",
        user: "-U --user",
        ..NONE
    },
    Program { names: "net samba-tool", after: "user", positional: Some(2), ..NONE },
    Program { names: "smbpasswd pdbedit", reads: "*", ..NONE },
    Program { names: "smbmap crackmapexec nxc netexec evil-winrm hydra medusa certipy psexec", secret: "-p", ..NONE },
    Program { names: "crackmapexec nxc netexec evil-winrm", secret: "-H", ..NONE },
    Program { names: "xfreerdp xfreerdp3 wlfreerdp freerdp", attached: "/p: /pth: /gp: /gateway-password:", ..NONE },
    Program { names: "rdesktop", secret: "-p", reads: "-", ..NONE },
    Program { names: "plink pscp psftp puttygen pageant kitty", apart: "-pw -pwfile", ..NONE },
    Program { names: "sshpass", secret: "-p", ..NONE },
    Program { names: "vncpasswd", reads: "*", positional: Some(0), ..NONE },
    // Registries, clouds and what runs in them.
    Program {
        names: "docker podman nerdctl buildah skopeo oras crane regctl helm",
        after: "login",
        secret: "-p",
        reads: "--password-stdin -",
        ..NONE
    },
    Program { names: "skopeo podman buildah", user: "--creds --src-creds --dest-creds", ..NONE },
    Program { names: "docker podman nerdctl", after: "run", plain: "-u --user", ..NONE },
    Program { names: "docker podman nerdctl", after: "exec", plain: "-u --user", ..NONE },
    Program { names: "docker podman nerdctl", after: "create", plain: "-u --user", ..NONE },
    Program { names: "docker podman", after: "secret create", reads: "*", ..NONE },
    Program { names: "kubectl oc k3s", after: "create secret", secret: "--from-literal", reads: "*", ..NONE },
    Program { names: "kubectl oc", after: "patch secret", apart: "-p --patch", ..NONE },
    Program { names: "kubectl oc", reads: "- /dev/stdin", ..NONE },
    Program { names: "oc", after: "login", secret: "-p", ..NONE },
    Program { names: "kubeseal argocd sops age openssl", reads: "*", ..NONE },
    Program { names: "k3s", after: "agent", secret: "-t", ..NONE },
    Program { names: "az", after: "login", secret: "-p", ..NONE },
    Program { names: "az", after: "secret set", apart: "--value", ..NONE },
    Program { names: "aws", named: true, ..NONE },
    Program { names: "aws", after: "put-parameter", apart: "--value", ..NONE },
    Program { names: "aws", after: "put-secret-value", apart: "--secret-binary", ..NONE },
    Program { names: "gcloud", after: "secrets", reads: "*", ..NONE },
    Program { names: "gcloud", after: "print-access-token", positional: Some(0), ..NONE },
    Program { names: "mc mcli", after: "alias set", positional: Some(2), ..NONE },
    Program { names: "mc mcli", after: "config host add", positional: Some(2), ..NONE },
    Program { names: "mc mcli", after: "admin user add", positional: Some(1), ..NONE },
    Program { names: "rclone", after: "obscure", positional: Some(0), reads: "*", ..NONE },
    Program { names: "rclone wpa_cli pppd racadm poetry yarn pnpm npm gem pip3 pip zerotier-cli", named: true, ..NONE },
    Program { names: "doctl hcloud codecov buildkite-agent influx vercel", secret: "-t", ..NONE },
    Program { names: "flyctl fly", secret: "-t", ..NONE },
    Program { names: "flyctl fly", after: "secrets set", positional: Some(0), plain: "-a --app", ..NONE },
    Program { names: "netlify", apart: "--auth -a", ..NONE },
    Program { names: "gitlab-runner", secret: "-r -t", ..NONE },
    Program { names: "gh glab", after: "secret set", secret: "-b --body", reads: "*", ..NONE },
    Program { names: "gh glab", after: "auth", secret: "-t", reads: "*", ..NONE },
    Program { names: "wrangler pass secret-tool keepassxc-cli lpass op", reads: "*", ..NONE },
    Program { names: "heroku doppler", after: "config:set", positional: Some(0), ..NONE },
    Program { names: "doppler", after: "secrets set", positional: Some(0), reads: "*", ..NONE },
    Program { names: "pulumi", after: "config set", positional: Some(1), reads: "*", ..NONE },
    Program { names: "vault bao", after: "login", positional: Some(0), reads: "*", ..NONE },
    Program { names: "vault bao", after: "unwrap", positional: Some(0), ..NONE },
    Program { names: "vault bao", after: "token", positional: Some(1), ..NONE },
    Program { names: "vault bao", after: "operator unseal", positional: Some(0), ..NONE },
    Program { names: "vault bao", after: "kv put", positional: Some(1), reads: "*", ..NONE },
    Program { names: "vault bao", after: "kv patch", positional: Some(1), reads: "*", ..NONE },
    Program { names: "vault bao", after: "write", positional: Some(1), reads: "*", ..NONE },
    Program { names: "consul", after: "kv put", positional: Some(1), reads: "*", ..NONE },
    Program { names: "etcdctl", after: "put", positional: Some(1), ..NONE },
    Program { names: "etcdctl", user: "--user", ..NONE },
    Program { names: "ngrok", after: "authtoken", positional: Some(0), ..NONE },
    Program { names: "ngrok", after: "add-authtoken", positional: Some(0), ..NONE },
    Program { names: "ngrok", after: "add-api-key", positional: Some(0), ..NONE },
    Program { names: "cloudflared", after: "service install", positional: Some(0), ..NONE },
    Program { names: "wandb cargo heroku railway bw", after: "login", positional: Some(0), reads: "*", ..NONE },
    Program { names: "bw", after: "unlock", positional: Some(0), ..NONE },
    Program { names: "snyk", after: "auth", positional: Some(0), ..NONE },
    Program { names: "npm npm-cli pnpm", after: "config set", positional: Some(1), plain: "-g --location", ..NONE },
    Program { names: "composer poetry bundle pip-conf", after: "config", positional: Some(1), ..NONE },
    Program { names: "git", after: "config", named: true, ..NONE },
    Program { names: "git", after: "credential", reads: "*", ..NONE },
    Program { names: "twine flit hatch", secret: "-p -a", ..NONE },
    Program { names: "nuget dotnet", after: "push", secret: "-k", ..NONE },
    Program { names: "dotnet", after: "user-secrets set", positional: Some(1), ..NONE },
    Program { names: "nuget", after: "setapikey", positional: Some(0), ..NONE },
    Program { names: "ansible-vault", reads: "*", ..NONE },
    // Databases and queues.
    Program {
        names: "mysql mysqldump mysqladmin mysqlimport mysqlshow mysqlcheck mysqlslap mysqlpump mysqlbinlog mysqlsh \
                mycli mydumper myloader xtrabackup mariabackup mariadb mariadb-dump mariadb-admin mariadb-check \
                mariadb-import mariadb-backup mysql_upgrade",
        attached: "-p",
        ..NONE
    },
    Program { names: "mydumper myloader", apart: "-p", ..NONE },
    Program { names: "mysqladmin mariadb-admin", after: "password", positional: Some(0), ..NONE },
    Program { names: "redis-cli valkey-cli keydb-cli redis-benchmark", secret: "-a", ..NONE },
    Program { names: "redis-cli valkey-cli", after: "auth", positional: Some(0), ..NONE },
    Program { names: "redis-cli valkey-cli", after: "AUTH", positional: Some(0), ..NONE },
    Program { names: "redis-cli valkey-cli", words: "requirepass masterauth", ..NONE },
    Program {
        names: "mongo mongosh mongodump mongorestore mongoexport mongoimport mongostat mongotop mongofiles cqlsh \
                couchbase-cli cbq cbbackupmgr rabbitmqadmin hdbsql exaplus snowsql cypher-shell isql-fb beeline gsec",
        secret: "-p",
        ..NONE
    },
    Program { names: "sqlcmd bcp osql tsql fisql freebcp go-sqlcmd", secret: "-P", ..NONE },
    Program { names: "sqlplus sqlldr sqlcl sql exp imp expdp impdp rman", slash: true, ..NONE },
    Program { names: "vsql kadmin kadmin.local", secret: "-w", ..NONE },
    Program { names: "nzsql nzload", apart: "-pw", ..NONE },
    Program { names: "isql iusql", positional: Some(2), ..NONE },
    Program { names: "db2", words: "using", ..NONE },
    Program { names: "rabbitmqctl", after: "add_user", positional: Some(1), ..NONE },
    Program { names: "rabbitmqctl", after: "change_password", positional: Some(1), ..NONE },
    Program { names: "rabbitmqctl", after: "authenticate_user", positional: Some(1), ..NONE },
    Program { names: "mosquitto_pub mosquitto_sub mosquitto_rr", secret: "-P", ..NONE },
    Program { names: "mosquitto_passwd", after: "-b", positional: Some(1), ..NONE },
    Program { names: "mqtt", apart: "-pw", ..NONE },
    Program { names: "coap-client", secret: "-k", ..NONE },
    // Directories, devices and accounts.
    Program {
        names: "ldapsearch ldapadd ldapmodify ldapdelete ldapmodrdn ldapcompare ldapwhoami ldappasswd ldapexop",
        secret: "-w",
        attached: "-xw -Zw",
        ..NONE
    },
    Program { names: "ldappasswd slappasswd", secret: "-s -a", ..NONE },
    Program {
        names: "snmpget snmpgetnext snmpwalk snmpbulkwalk snmpbulkget snmpset snmptrap snmpinform snmptable snmpdf \
                snmpstatus snmpdelta snmpnetstat snmptranslate snmptest snmpusm snmp-check onesixtyone",
        secret: "-A -X -c",
        ..NONE
    },
    Program { names: "ipmitool ipmiutil", secret: "-P", ..NONE },
    Program { names: "ipmitool", after: "user set password", positional: Some(1), ..NONE },
    Program { names: "ipmipower ipmi-sensors ipmi-sel bmc-info racadm", secret: "-p", ..NONE },
    Program { names: "radtest", positional: Some(1), ..NONE },
    Program { names: "radclient", positional: Some(2), ..NONE },
    Program { names: "nmcli", named: true, words: "psk wifi-sec.psk", ..NONE },
    Program { names: "iwconfig iw", named: true, words: "enc keys", ..NONE },
    Program { names: "ip", after: "xfrm", words: "enc auth aead auth-trunc comp", ..NONE },
    Program { names: "wpa_passphrase", positional: Some(1), reads: "*", ..NONE },
    Program { names: "wg", reads: "*", named: true, ..NONE },
    Program { names: "wpa_cli", after: "passphrase", positional: Some(1), ..NONE },
    Program { names: "bitcoin-cli litecoin-cli", after: "walletpassphrase", positional: Some(0), ..NONE },
    Program { names: "openfortivpn", secret: "-p", ..NONE },
    Program { names: "openconnect openvpn", reads: "--passwd-on-stdin", ..NONE },
    Program { names: "useradd usermod", secret: "-p", ..NONE },
    Program { names: "chpasswd cryptsetup kinit mkpasswd smbpasswd ssh-add ksu doveadm", reads: "*", ..NONE },
    Program { names: "passwd su", reads: "*", first: true, ..NONE },
    Program { names: "mkpasswd", plain: "-m -S -R", positional: Some(0), ..NONE },
    Program { names: "htpasswd htdbm", plain: "-C -r", positional: Some(1), reads: "-i", ..NONE },
    Program { names: "htdigest", reads: "*", ..NONE },
    Program { names: "sudo doas", reads: "-S -kS -Sk -nS", ..NONE },
    Program { names: "doveadm", after: "pw", secret: "-p", ..NONE },
    Program { names: "doveadm", after: "auth", positional: Some(2), ..NONE },
    Program { names: "saslpasswd2", reads: "-p", ..NONE },
    // Archives, keys and sums.
    Program { names: "zip unzip zipcloak funzip", secret: "-P", ..NONE },
    Program { names: "7z 7za 7zr 7zz 7zzs p7zip", attached: "-p", ..NONE },
    Program { names: "rar unrar", attached: "-p -hp", ..NONE },
    Program { names: "openssl", apart: "-k -K -kek -macopt -hmac -pass -passin -passout -psk", ..NONE },
    Program { names: "openssl", after: "passwd", positional: Some(0), plain: "-in", ..NONE },
    Program { names: "osslsigncode signtool pk12util certutil", apart: "-pass /p -W -K", ..NONE },
    Program { names: "qpdf", after: "--encrypt", positional: Some(0), ..NONE },
    Program { names: "ssh-keygen", apart: "-N -P", ..NONE },
    Program { names: "ssh-keygen puttygen", attached: "-N -P", ..NONE },
    Program { names: "gpg gpg2", reads: "--passphrase-fd", ..NONE },
    Program { names: "rclone restic borg duplicity", reads: "-", ..NONE },
    Program { names: "md5sum sha1sum sha224sum sha256sum sha384sum sha512sum b2sum", reads: "*", ..NONE },
    Program { names: "steghide xmrig xmr-stak cpuminer minerd cgminer ccminer", secret: "-p", ..NONE },
    Program { names: "frpc frps", secret: "-t", ..NONE },
    Program { names: "ss-local ss-server ss-redir ss-tunnel sslocal ssserver obfs-local", secret: "-k", ..NONE },
    Program { names: "microsocks 3proxy", secret: "-P", ..NONE },
    Program { names: "ftpget ftpput sendxmpp veracrypt truecrypt testsaslauthd", secret: "-p", ..NONE },
    Program {
        names: "irssi imtest pop3test smtptest squidclient ipa-client-install ipa-replica-install",
        secret: "-w",
        ..NONE
    },
    Program { names: "check_http check_curl", user: "-a -b", ..NONE },
    Program {
        names: "check_mysql check_mysql_query check_pgsql check_ldap check_mssql_health check_ssh",
        secret: "-p",
        ..NONE
    },
    Program { names: "check_snmp check_ifoperstatus check_ifstatus", secret: "-C -A -X", ..NONE },
    Program { names: "transmission-remote", user: "-n", ..NONE },
    Program { names: "yubico-piv-tool ykman", secret: "-P -k", ..NONE },
    Program { names: "zkcli", words: "digest", ..NONE },
    Program { names: "nsupdate dig kdig knsupdate", user: "-y", ..NONE },
    Program { names: "vmrun", apart: "-gp -vp -p", ..NONE },
    Program { names: "virsh", after: "secret-set-value", positional: Some(1), ..NONE },
    Program { names: "etcdctl", after: "user add", positional: Some(0), ..NONE },
    Program { names: "create_ap", positional: Some(3), ..NONE },
    Program { names: "read", reads: "-s -rs -sr", first: true, ..NONE },
    Program { names: "poetry vsce ovsx", after: "publish", secret: "-p", ..NONE },
    Program { names: "cpan-upload obs-cli", secret: "-p", ..NONE },
    Program { names: "pdm gobuster", secret: "-P", ..NONE },
    Program { names: "security", after: "unlock-keychain", secret: "-p", ..NONE },
    Program { names: "anaconda woodpecker-cli", secret: "-t", ..NONE },
    Program { names: "swift", secret: "-K", ..NONE },
    Program { names: "sipp", apart: "-ap", ..NONE },
    Program { names: "nikto", user: "-id", ..NONE },
    Program { names: "iscsiadm", apart: "-v", ..NONE },
    Program { names: "b2", after: "authorize-account", positional: Some(1), ..NONE },
    Program { names: "b2", after: "account authorize", positional: Some(1), ..NONE },
    Program { names: "consul", after: "set-agent-token", positional: Some(1), ..NONE },
    Program { names: "nomad", after: "acl bootstrap", positional: Some(0), ..NONE },
    Program { names: "emqx_ctl", after: "admins", positional: Some(2), ..NONE },
    // What others run.
    Program { names: "send exp_send", positional: Some(0), first: true, ..NONE },
    Program { names: "convertto-securestring", positional: Some(0), ..NONE },
    Program { names: "nomad act", secret: "-s", ..NONE },
    Program { names: "hdfs hadoop", named: true, ..NONE },
];

/// File name of a path, without what says how it is run.
pub(super) fn name(path: &str) -> &str {
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    [".exe", ".py", ".js", ".rb", ".pl", ".sh"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

/// The entries by name.
static ENTRIES: LazyLock<HashMap<&str, Vec<&Program>>> = LazyLock::new(|| {
    let mut entries: HashMap<_, Vec<_>> = HashMap::new();
    for program in PROGRAMS {
        for name in program.names.split_ascii_whitespace() {
            entries.entry(name).or_default().push(program);
        }
    }
    entries
});

/// The entries of a program.
pub(super) fn entries(path: &str) -> &'static [&'static Program] {
    let name = name(path);
    // No name is longer.
    if name.len() > 32 {
        return &[];
    }
    ENTRIES.get(name.to_ascii_lowercase().as_str()).map_or(&[], Vec::as_slice)
}

/// The list has the word.
pub(super) fn has(list: &str, word: &str) -> bool {
    !list.is_empty() && list.split_ascii_whitespace().any(|listed| listed == word)
}
