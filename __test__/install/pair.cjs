const { join } = require('ringfence')
const { speak } = require('./speak.cjs')

void speak(join, ...process.argv.slice(2))
