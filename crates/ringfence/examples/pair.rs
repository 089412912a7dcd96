//! Two processes meet and talk: start it twice with the same address (`@pair` where none is given).

use ringfence::{Address, Options, Role, join};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address: Address = std::env::args().nth(1).as_deref().unwrap_or("@pair").parse()?;
    let channel = join(&address, &Options::new())?;
    println!(
        "this process is the {}, its peer is {:?}",
        channel.role(),
        channel.peer()
    );
    for check in channel.evidence() {
        println!(
            "{:12} {:14} wanted {:60} found {}",
            check.step, check.check, check.wanted, check.found
        );
    }
    let role = channel.role();
    let (mut sender, mut receiver) = channel.split();
    let mut message = vec![0; 1 << 16];
    if role == Role::Host {
        for number in 0..5 {
            sender.send(format!("question {number}").as_bytes())?;
            let length = receiver.receive(&mut message)?.ok_or("the peer has ended")?;
            println!("{}", String::from_utf8_lossy(&message[..length]));
        }
        sender.end();
    } else {
        while let Some(length) = receiver.receive(&mut message)? {
            let answer = format!("answer to {}", String::from_utf8_lossy(&message[..length]));
            sender.send(answer.as_bytes())?;
        }
    }
    Ok(())
}
