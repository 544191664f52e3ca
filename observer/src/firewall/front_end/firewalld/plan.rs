//! firewalld's commands. Inside a policy what denies comes before what allows, whatever the order: only a rich rule with a
//! negative priority is before both. Runtime and permanent rules are changed alike, for a reload would lose what is not kept.

use super::{PANIC_ON, words::policy};
use crate::{
    firewall::front_end::{Plan, Plans, Target, plan::plain},
    model::{Entrance, Lasts, NamedRule, Scope},
};

/// Before all others.
const FIRST: i32 = -32_768;

pub(super) fn plans(rule: &NamedRule, target: &Target) -> Plans {
    let Some(statement) = &rule.statement else { return Ok(Vec::new()) };
    // A policy has zones of its own; nothing else says by which interface something comes.
    let target = &target.by_any();
    if statement.name == PANIC_ON {
        return Ok(vec![Plan {
            commands: vec!["firewall-cmd --panic-off".to_owned()],
            undo: vec![format!("firewall-cmd {PANIC_ON}")],
            scope: Scope::All,
            opens: "everything that panic mode stopped, and no more than the other rules allow".to_owned(),
            lasts: Lasts::Permanent,
            note: None,
        }]);
    }
    if let Some(policy) = policy(&rule.chain) {
        let Some(policy) = plain(policy) else { return Ok(Vec::new()) };
        return Ok(of_policy(policy, rule, target));
    }
    // `ipv4 filter OUTPUT 0 -p …`
    let mut words = statement.name.split(' ');
    if let (Some(family @ ("ipv4" | "ipv6")), Some(table), Some(chain), Some(priority)) =
        (words.next(), words.next().and_then(plain), words.next().and_then(plain), words.next())
        && let Some(before) = priority.parse::<i32>().ok().and_then(|priority| priority.checked_sub(1))
    {
        // An exception in a chain that others lead to, too, is none of this packet's alone.
        if rule.entrance != Entrance::Own {
            return Err(Some(format!(
                "chain {chain} of direct rules is reached from several hooks: accept it by a direct rule in front of the one that \
                 leads there"
            )));
        }
        return Ok(direct(&format!("{family} {table} {chain} {before}"), family == "ipv6", target));
    }
    Err(Some(
        "firewalld made this rule by itself: `firewall-cmd --list-all-policies` and `--list-all-zones` show of what"
            .to_owned(),
    ))
}

/// A change, of what is in force and of what is kept.
fn change(scope: Scope, opens: String, options: &[(String, String)], note: Option<String>) -> Plan {
    let both = |option: &str| [format!("firewall-cmd {option}"), format!("firewall-cmd --permanent {option}")];
    Plan {
        commands: options.iter().flat_map(|(add, _)| both(add)).collect(),
        undo: options.iter().rev().flat_map(|(_, remove)| both(remove)).collect(),
        scope,
        opens,
        lasts: Lasts::Permanent,
        note,
    }
}

/// The same of what is in force alone, which ends by itself.
fn for_an_hour(target: &Target, options: &[(String, String)]) -> Plan {
    let (scope, opens) = target.opens("", &target.addresses);
    Plan {
        commands: options.iter().map(|(add, _)| format!("firewall-cmd {add} --timeout=1h")).collect(),
        undo: options.iter().rev().map(|(_, remove)| format!("firewall-cmd {remove}")).collect(),
        scope,
        opens,
        lasts: Lasts::Hour,
        note: None,
    }
}

fn of_policy(policy: &str, rule: &NamedRule, target: &Target) -> Vec<Plan> {
    let Target { transport, port, .. } = target;
    let rich = |rule: &str| {
        let option = |verb: &str| format!("--policy {policy} --{verb}-rich-rule '{rule}'");
        (option("add"), option("remove"))
    };
    let accept = format!("port port=\"{port}\" protocol=\"{transport}\" accept");
    let everywhere = rich(&format!("rule priority=\"{FIRST}\" {accept}"));
    let to: Vec<(String, String)> = target
        .addresses
        .iter()
        .map(|address| {
            let family = if address.is_ipv6() { "ipv6" } else { "ipv4" };
            rich(&format!("rule priority=\"{FIRST}\" family=\"{family}\" destination address=\"{address}\" {accept}"))
        })
        .collect();
    let temporary = for_an_hour(target, if target.is_by_name { std::slice::from_ref(&everywhere) } else { &to });
    let by_port = change(Scope::Port, target.opens_port(), &[everywhere], None);
    let by_address = change(Scope::Address, target.opens_address(&target.addresses), &to, Some(target.of_addresses()));
    let is_target = rule.statement.as_ref().is_some_and(|statement| statement.name.starts_with("target "));
    if is_target {
        // What no rule of the policy decides.
        let option = |verb: &str| format!("--policy {policy} --{verb}-port {}", target.port());
        let allowed = change(Scope::Port, target.opens_port(), &[(option("add"), option("remove"))], None);
        vec![allowed, by_port, by_address, temporary]
    } else {
        vec![by_port, by_address, temporary]
    }
}

/// A direct rule in front of another.
fn direct(place: &str, v6: bool, target: &Target) -> Vec<Plan> {
    let Target { transport, port, .. } = target;
    let option =
        |verb: &str, to: &str| format!("--direct --{verb}-rule {place} {to}-p {transport} --dport {port} -j ACCEPT");
    let pair = |to: &str| (option("add", to), option("remove", to));
    let addresses = target.of_family(v6);
    let to: Vec<(String, String)> = addresses.iter().map(|address| pair(&format!("-d {address} "))).collect();
    vec![
        change(Scope::Port, target.opens_port_of(if v6 { "ip6" } else { "ip" }), &[pair("")], None),
        change(Scope::Address, target.opens_address(&addresses), &to, Some(target.of_addresses())),
    ]
}
