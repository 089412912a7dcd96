// The least that a program loads before it can join.

import 'ringfence'
