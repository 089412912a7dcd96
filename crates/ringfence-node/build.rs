//! Tells the linker that the symbols of Node-API come from the process that loads the binding.

fn main() {
    napi_build::setup();
}
